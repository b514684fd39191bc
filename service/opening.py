"""A stream up to its first event with content: until then it may still fail over, or lose a race, unseen."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from routing.outcomes import Outcome
from service.providers.base import Adapter, AttemptFailed, Call, Chunk, Failure
from service.trail import Attempt


@dataclass(slots=True)
class Opening:
    """A stream that has begun to answer: the events so far, the last of them with content, and the rest to come."""

    held: list[Chunk]
    rest: AsyncGenerator[Chunk, None]

    @property
    def headers(self) -> Mapping[str, str]:
        """What the provider said before its first event."""
        return self.held[0].headers if self.held else {}

    async def chunks(self, *, is_continued: bool) -> AsyncGenerator[Chunk, None]:
        """Yield every event, without closing what they come from. What only announces an answer is left out of one
        that continues another.
        """
        for chunk in self.held[-1:] if is_continued else self.held:
            yield chunk
        self.held.clear()
        async for chunk in self.rest:
            yield chunk

    async def aclose(self) -> None:
        """Let go of it: the upstream connection is closed."""
        await self.rest.aclose()


async def opened(adapter: Adapter, call: Call, attempt: Attempt) -> Opening:
    """Return the stream once it answers; raises AttemptFailed. Cancelling closes the upstream connection."""
    rest = adapter.stream(call, attempt.endpoint, attempt.timeouts)
    held: list[Chunk] = []
    try:
        async with asyncio.timeout(attempt.timeouts.first_byte_s):
            async for chunk in rest:
                held.append(chunk)
                if chunk.has_content or chunk.finish_reason is not None:
                    break
    except TimeoutError:
        await rest.aclose()
        raise AttemptFailed(overdue(attempt)) from None
    except BaseException:
        await rest.aclose()
        raise
    return Opening(held, rest)


def overdue(attempt: Attempt) -> Failure:
    """Return the failure of an attempt whose answer did not come in time."""
    return Failure(Outcome.TIMEOUT, None, f"no answer within {attempt.timeouts.first_byte_s:.3g} s")
