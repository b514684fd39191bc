"""From a request to the attempt that answers it: one attempt after the other, and a hedge beside one that is slow.

The rule of this file: whatever has been started has ended when `answered` returns or raises. The first to answer wins;
the other is called off at once, and the books on it are closed as what it was.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from service.errors import ServiceError
from service.providers.base import AttemptFailed
from service.trail import Attempt
from service.walk import Walk

_Answer = TypeVar("_Answer")


async def answered(
    walk: Walk,
    start: Callable[[Attempt], Awaitable[_Answer]],
    drop: Callable[[_Answer], Awaitable[None]],
) -> tuple[Attempt, _Answer]:
    """Return the attempt that answered, and its answer.

    Args:
        walk: decides where attempts go, and keeps the books.
        start: makes one attempt and returns its answer, or raises AttemptFailed.
        drop: lets go of an answer that came too late to be wanted.

    Raises:
        ServiceError: nobody answered.
    """
    while True:
        attempt = await walk.begin()
        if attempt.hedge_after_s is None:
            won = await _alone(walk, attempt, start)
        else:
            won = await _Race(walk, start, drop).run(attempt, attempt.hedge_after_s)
        if won is not None:
            return won


async def _alone(
    walk: Walk, attempt: Attempt, start: Callable[[Attempt], Awaitable[_Answer]]
) -> tuple[Attempt, _Answer] | None:
    """Return the attempt with its answer, None when another endpoint is to be tried."""
    try:
        return attempt, await start(attempt)
    except AttemptFailed as failed:
        walk.failed(attempt, failed.failure)
        return None
    except asyncio.CancelledError:
        walk.cancelled(attempt)
        raise
    except Exception as error:
        walk.crashed(error, attempt)
        raise


class _Race(Generic[_Answer]):
    """An attempt and, if it is slow, a second one beside it, each in a task of its own."""

    def __init__(
        self,
        walk: Walk,
        start: Callable[[Attempt], Awaitable[_Answer]],
        drop: Callable[[_Answer], Awaitable[None]],
    ) -> None:
        self._walk = walk
        self._start = start
        self._drop = drop
        self._running: dict[asyncio.Task[_Answer], Attempt] = {}

    async def run(self, first: Attempt, delay_s: float) -> tuple[Attempt, _Answer] | None:
        """Return the winner with its answer, None when another endpoint is to be tried."""
        won: tuple[Attempt, _Answer] | None = None
        try:
            self._send(first)
            done, _ = await asyncio.wait(self._running, timeout=delay_s)
            if not done and (second := self._walk.hedge(first)) is not None:
                self._send(second)
            while self._running and won is None:
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                won = self._winner(done)
            await self._stop()
            await self._close_losers()
        except ServiceError:
            raise
        except asyncio.CancelledError:
            self._walk.cancelled(*await self._abandon(won))
            raise
        except Exception as error:
            self._walk.crashed(error, *await self._abandon(won))
            raise
        return won

    def _send(self, attempt: Attempt) -> None:
        async def run() -> _Answer:
            return await self._start(attempt)

        self._running[asyncio.get_running_loop().create_task(run(), name="attempt")] = attempt

    def _winner(self, done: set[asyncio.Task[_Answer]]) -> tuple[Attempt, _Answer] | None:
        """Return the first of `done` that has answered, if one has; book those that failed before it. Raises the
        ServiceError that ends the request.
        """
        for task in sorted(done, key=lambda each: self._running[each].number):
            error = task.exception()
            if error is not None and not isinstance(error, AttemptFailed):
                raise error
            attempt = self._running.pop(task)
            if error is None:
                return attempt, task.result()
            self._walk.failed(attempt, error.failure, beside=bool(self._running))
        return None

    async def _stop(self) -> None:
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _close_losers(self) -> None:
        for task in list(self._running):
            attempt = self._running.pop(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, AttemptFailed):
                self._walk.failed(attempt, error.failure, beside=True)
                continue
            self._walk.outrun(attempt)
            if error is None and not task.cancelled():
                await self._drop(task.result())

    async def _abandon(self, won: tuple[Attempt, _Answer] | None) -> list[Attempt]:
        """Stop everything; return the attempts whose books are still open."""
        await self._stop()
        answers = [task.result() for task in self._running if not task.cancelled() and task.exception() is None]
        left = list(self._running.values())
        self._running.clear()
        if won is not None:
            answers.append(won[1])
            left.append(won[0])
        for answer in answers:
            await self._drop(answer)
        return left
