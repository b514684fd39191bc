"""Is a stream crawling? Tokens are counted over one span after another, so that a pause alone is no crawl.

Nobody says how many tokens an event holds: it is one, and one more for every four characters it is longer than the
shortest event of the stream. What is paid for is estimated more narrowly: events are tokens, unless they are longer.
"""

from service.wire import CHARACTERS_PER_TOKEN


class Pace:
    """The pace of one stream; times are seconds on any steady clock, without those its reader took.

    Args:
        floor_tokens_per_s: a stream that is slower than this over a whole span crawls.
        span_s: longer than the pause that is allowed between two events.
        now: when its first content arrived.
    """

    __slots__ = ("_characters", "_events", "_floor", "_shortest", "_since", "_span_s", "_tokens")

    def __init__(self, floor_tokens_per_s: float, span_s: float, now: float) -> None:
        self._floor = floor_tokens_per_s
        self._span_s = span_s
        self._since = now
        self._tokens = 0.0
        self._shortest = 0
        self._events = 0
        self._characters = 0

    @property
    def output_tokens(self) -> int:
        """An estimate of all tokens that have arrived."""
        return max(self._events, (self._characters - self._events * self._shortest) // CHARACTERS_PER_TOKEN)

    def arrived(self, characters: int, now: float) -> float | None:
        """An event with content of that size arrived. Return the tokens per second of a stream that crawls, else
        None.
        """
        if not self._shortest or characters < self._shortest:
            self._shortest = characters
        self._events += 1
        self._characters += characters
        self._tokens += 1 + (characters - self._shortest) / CHARACTERS_PER_TOKEN
        spent_s = now - self._since
        if spent_s < self._span_s:
            return None
        tokens_per_s = self._tokens / spent_s
        self._since, self._tokens = now, 0.0
        return tokens_per_s if tokens_per_s < self._floor else None
