"""What a wire format promises to those who carry it: how the events of a stream become chunks.

The rule of this file: it holds the contract and its three ways out, so that a wire format stays pure and knows nothing
of sockets.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec

from routing.outcomes import Outcome
from service.providers.base import Chunk
from service.providers.sse import SseEvent

Tokens = tuple[int | None, int | None]
"""Input and output tokens, as far as the provider counted them."""

_MOST_TOKENS = 10**12

NOTHING = frozenset({b"", b"null"})
"""What a field that is absent or null looks like as raw JSON."""


class Usage(Protocol):
    """Counted tokens, under whichever names the wire format has for them."""

    input_tokens: int | None
    output_tokens: int | None


_Usage = TypeVar("_Usage", bound=Usage)


def tokens(raw: msgspec.Raw, usage: msgspec.json.Decoder[_Usage]) -> Tokens:
    """Return what `usage` makes of a field; of an unknown shape, and beyond reason, it counts as none: it must not cost
    the caller an answer, nor pay a tenant.
    """
    if bytes(raw) in NOTHING:
        return None, None
    try:
        counted = usage.decode(raw)
    except (ValueError, RecursionError):
        return None, None
    return plausible(counted.input_tokens), plausible(counted.output_tokens)


def plausible(counted: int | None) -> int | None:
    """Return a count of tokens, None for one that nobody can have counted."""
    return counted if counted is not None and 0 <= counted <= _MOST_TOKENS else None


class Malformed(ValueError):  # noqa: N818 - named as its outcome
    """An answer that is not what the wire format promises. The text says what was expected."""


class Reported(Exception):  # noqa: N818 - what the provider reported, not an error of ours
    """An error object under a good status, or as an event of a stream; `body` holds it as JSON."""

    def __init__(self, body: bytes) -> None:
        super().__init__("the provider reported an error")
        self.body = body


class Unusable(Exception):  # noqa: N818 - says what the answer is
    """A well-formed answer that nobody can use: EMPTY or REFUSED_FORMAT."""

    def __init__(self, outcome: Outcome, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class EventReader(Protocol):
    """Reads the events of one stream."""

    @property
    def done(self) -> bool:
        """The last event has been read."""
        ...

    @property
    def complete(self) -> bool:
        """The answer would be whole if the stream ended now."""
        ...

    def read(self, event: SseEvent) -> Sequence[Chunk]:
        """Return the chunks that `event` makes; raises Reported, Malformed and Unusable."""
        ...

    def end(self) -> Sequence[Chunk]:
        """Return the chunks still owed once a complete stream has ended; raises Unusable."""
        ...
