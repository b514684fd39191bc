"""Server-sent events, parsed as they arrive: bytes in, events out, no I/O.

The rule of this file: how the bytes were cut into pieces never changes the events (WHATWG HTML, 9.2.6). Bytes stay
bytes: `data` is handed on exactly as sent, so a cut inside a UTF-8 sequence cannot matter and nothing is re-encoded.
`id` and `retry` concern reconnecting, which a completion stream cannot do; they are passed over.
"""

import msgspec

_BOM = b"\xef\xbb\xbf"


class SseError(ValueError):
    """One event is larger than the parser's limit."""


class SseEvent(msgspec.Struct, frozen=True):
    """One event. `type` is b"" unless the server named one; `data` lines are joined by a line feed."""

    data: bytes
    type: bytes = b""


class SseParser:
    """Feed it what arrives, in any pieces. An event that the stream leaves unfinished is dropped, as the standard says.

    Args:
        max_event_bytes: the most that the lines of one event may hold together, an unfinished line included.
    """

    __slots__ = ("_after_cr", "_at_start", "_data", "_held", "_max", "_partial", "_type")

    def __init__(self, max_event_bytes: int = 16 * 2**20) -> None:
        self._max = max_event_bytes
        self._partial: list[bytes] = []
        self._data: list[bytes] = []
        self._type = b""
        self._held = 0
        self._at_start = True
        self._after_cr = False

    def feed(self, piece: bytes) -> list[SseEvent]:
        """Return the events that `piece` completes.

        Raises:
            SseError: an event passes the limit; the parser must not be fed again.
        """
        if not piece:
            return []
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        self._after_cr = piece.endswith(b"\r")
        events: list[SseEvent] = []
        for ended in piece.splitlines(keepends=True):
            line = ended.rstrip(b"\r\n")
            self._held += len(line)
            if self._held > self._max:
                raise SseError(f"expected events of at most {self._max} bytes, this one is larger")
            if len(line) == len(ended):
                self._partial.append(line)
            elif self._partial:
                self._partial.append(line)
                whole = b"".join(self._partial)
                self._partial.clear()
                self._take(whole, events)
            else:
                self._take(line, events)
        return events

    def _take(self, line: bytes, events: list[SseEvent]) -> None:
        size = len(line)
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(SseEvent(b"\n".join(self._data), self._type))
                self._data = []
            self._type = b""
            self._held = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._type = value.removeprefix(b" ")
        else:
            self._held -= size  # comments and unknown fields are not kept
