"""The attempts of one endpoint that have not ended: who waits for a first byte, who streams, and who was given up.

Attempts are kept in the order they were sent in, so that the oldest is the first. Batches of several writers may
interleave; what looks for attempts that are overdue then finds some of them a moment later.
"""

from collections.abc import Collection


class InFlight:
    """Attempts by id. Bounded by what the endpoint was sent and has not ended; times are those of the window."""

    __slots__ = ("_lost", "_sent", "_streaming", "_streams", "_whole")

    def __init__(self) -> None:
        self._sent: dict[str, float] = {}
        self._streams: dict[str, float] = {}
        self._whole: dict[str, float] = {}
        self._streaming: dict[str, float] = {}
        self._lost: set[str] = set()

    def __len__(self) -> int:
        return len(self._sent)

    def started(self, attempt_id: str, now: float, *, streamed: bool) -> None:
        """An attempt was sent; `streamed` tells whether its first byte comes before the whole reply. An id in flight
        begins again.
        """
        if attempt_id in self._sent:
            self.ended(attempt_id, now)
        self._sent[attempt_id] = now
        (self._streams if streamed else self._whole)[attempt_id] = now

    def first_byte(self, attempt_id: str, now: float) -> None:
        """The attempt's first byte of payload arrived; what remains of a stream is generated from now on."""
        if self._streams.pop(attempt_id, None) is not None:
            self._streaming[attempt_id] = now
        else:
            self._whole.pop(attempt_id, None)

    def ended(self, attempt_id: str, now: float) -> float:
        """The attempt ended; return when it was sent (`now` for one that is not known)."""
        # It is in one of the three; a stream has had its first byte as a rule.
        if self._streaming.pop(attempt_id, None) is None and self._streams.pop(attempt_id, None) is None:
            self._whole.pop(attempt_id, None)
        if self._lost:
            self._lost.discard(attempt_id)
        return self._sent.pop(attempt_id, now)

    def oldest(self, now: float) -> float:
        """Return when the first of these attempts was sent; `now` without one."""
        return next(iter(self._sent.values()), now)

    def waiting(self, *, streamed: bool) -> Collection[float]:
        """Return when each attempt that waits for its first byte was sent."""
        return (self._streams if streamed else self._whole).values()

    def streaming(self) -> Collection[float]:
        """Return when the first byte of each stream that still runs arrived."""
        return self._streaming.values()

    def give_up(self, now: float, longer_than_s: float, *, streamed: bool) -> list[float]:
        """Give up the attempts that have waited longer than that; return when each was sent, each attempt once.

        They stay in flight: how they end is still to be heard.
        """
        given_up = []
        for attempt_id, sent in (self._streams if streamed else self._whole).items():
            if now - sent <= longer_than_s:
                break
            if attempt_id not in self._lost:
                self._lost.add(attempt_id)
                given_up.append(sent)
        return given_up

    def was_given_up(self, attempt_id: str) -> bool:
        """Tell whether the attempt was given up, until it ends."""
        return attempt_id in self._lost
