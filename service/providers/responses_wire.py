"""OpenAI's Responses API as bytes: answers and typed events looked into without being rebuilt.

The rule of this file: it is pure, and reads only how a response stands, its tokens, and whether an event carries
output. A stream ends with the event that holds the whole response; there is no [DONE].
"""

from collections.abc import Sequence

import msgspec

from routing.outcomes import Outcome
from service.providers.base import Chunk
from service.providers.reader import NOTHING, Malformed, Reported, Tokens, Unusable, tokens
from service.providers.sse import SseEvent

_ABSENT = msgspec.Raw()
_LAST = frozenset({"response.completed", "response.incomplete"})
_FAILED = frozenset({"response.failed", "response.cancelled"})


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    output: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _Event(msgspec.Struct):
    type: str
    delta: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT


_response = msgspec.json.Decoder(_Response)
_event = msgspec.json.Decoder(_Event)
_usage = msgspec.json.Decoder(_Usage)


def check_reply(body: bytes) -> Tokens:
    """Return the tokens (in, out) of a 200 answer.

    Raises:
        Reported: it is an error object, or a response that failed.
        Malformed: it is not a response.
        Unusable: it was completed without any output.
    """
    response = _read_response(body)
    if bytes(response.error) not in NOTHING or response.status == "failed":
        raise Reported(_error(response))
    if not bytes(response.output).startswith(b"["):
        raise Malformed("expected a response with a list of output")
    _require_output(response)
    return tokens(response.usage, _usage)


class StreamReader:
    """Looks into the events of one response. An `EventReader`."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = False

    @property
    def complete(self) -> bool:
        """The event with the whole response was seen."""
        return self.done

    def read(self, event: SseEvent) -> Sequence[Chunk]:
        """Look into one event; raises Reported, Malformed and Unusable."""
        data = event.data
        if data == b"[DONE]":  # some servers end with it all the same
            return ()
        try:
            told = _event.decode(data)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"expected typed events: {error}") from None
        if told.type == "error":
            raise Reported(data)
        if told.type in _FAILED:
            raise Reported(_error(_read_response(bytes(told.response))))
        if told.type not in _LAST:
            has_content = told.type.endswith(".delta") and bytes(told.delta) not in (b"", b'""')
            return (Chunk(data, has_content, event=event.type),)
        response = _read_response(bytes(told.response))
        _require_output(response)
        self.done = True
        input_tokens, output_tokens = tokens(response.usage, _usage)
        reason = told.type.removeprefix("response.")
        return (Chunk(data, False, reason, input_tokens, output_tokens, event=event.type),)

    def end(self) -> Sequence[Chunk]:
        """Nothing is owed: every event was handed on when it came."""
        return ()


def _read_response(body: bytes) -> _Response:
    try:
        return _response.decode(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a response object: {error}") from None


def _require_output(response: _Response) -> None:
    if response.status == "completed" and bytes(response.output) == b"[]":
        raise Unusable(Outcome.EMPTY, "the response has no output")


def _error(response: _Response) -> bytes:
    told = bytes(response.error)
    return b'{"error":%s}' % (told if told not in NOTHING else b'{"code":"server_error","message":"it failed"}')
