"""Time limits of waits in a row, on an event loop whose clock jumps to the next timer (C-04, L-02: no wait without an
end).
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import wraps
from typing import Any, TypeVarTuple

import pytest

from service.providers.watch import Watch

_Args = TypeVarTuple("_Args")


class JumpingLoop(asyncio.SelectorEventLoop):
    """Never waits: where it would, its clock jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.timers = 0

    def time(self) -> float:
        return self.now

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Args], object],
        *args: *_Args,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@pytest.fixture
def loop() -> JumpingLoop:
    return JumpingLoop()


def runs_on_it(story: Callable[[JumpingLoop], Coroutine[Any, Any, None]]) -> Callable[[JumpingLoop], None]:
    """Run a test on the loop it is given."""

    @wraps(story)
    def test(loop: JumpingLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(story(loop))

    return test


@runs_on_it
async def test_a_wait_ends_when_it_is_due(loop: JumpingLoop) -> None:
    watch = Watch()
    with pytest.raises(TimeoutError), watch.until(loop.time() + 5):
        await asyncio.Event().wait()
    assert loop.time() == 1005
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling(), "it goes on as if nothing had been cancelled"


@runs_on_it
async def test_waits_in_a_row_share_timers_and_each_has_its_own_end(loop: JumpingLoop) -> None:
    """Pieces arrive every second, each due within five; the one that does not come is missed five seconds later."""
    watch = Watch()
    for _ in range(20):
        with watch.until(loop.time() + 5):
            await asyncio.sleep(1)
    assert loop.time() == 1020
    assert loop.timers <= 20 + 5, "a timer for each piece itself, and few for the watch"
    with pytest.raises(TimeoutError), watch.until(loop.time() + 5):
        await asyncio.Event().wait()
    assert loop.time() == 1025


@runs_on_it
async def test_a_nearer_end_is_kept_although_the_timer_was_set_for_a_later_one(loop: JumpingLoop) -> None:
    watch = Watch()
    with watch.until(loop.time() + 60):
        await asyncio.sleep(1)
    with pytest.raises(TimeoutError), watch.until(loop.time() + 2):
        await asyncio.Event().wait()
    assert loop.time() == 1003


@runs_on_it
async def test_nobody_is_interrupted_between_waits(loop: JumpingLoop) -> None:
    watch = Watch()
    with watch.until(loop.time() + 5):
        await asyncio.sleep(1)
    await asyncio.sleep(30)  # whoever reads the answer takes his time
    assert loop.time() == 1031
    with pytest.raises(TimeoutError), watch.until(loop.time() + 5):
        await asyncio.Event().wait()
    assert loop.time() == 1036


@runs_on_it
async def test_a_cancellation_from_outside_stays_one(loop: JumpingLoop) -> None:
    """Also in the very moment in which the time is up."""
    watch = Watch()

    async def waits() -> None:
        with watch.until(loop.time() + 5):
            await asyncio.Event().wait()

    for leaves_after_s in (1, 5):
        task = asyncio.create_task(waits())
        loop.call_later(leaves_after_s, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task


@runs_on_it
async def test_a_closed_watch_leaves_no_timer(loop: JumpingLoop) -> None:
    watch = Watch()
    with watch.until(loop.time() + 3600):
        await asyncio.sleep(0)
    watch.close()
    failing = Watch()
    with pytest.raises(ValueError, match="broken"), failing.until(loop.time() + 3600):
        raise ValueError("broken")
    await asyncio.sleep(1)
    assert loop.time() == 1001
    left = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert not left


@runs_on_it
async def test_a_watch_serves_tasks_one_after_the_other(loop: JumpingLoop) -> None:
    """A stream is opened in one task and read in another."""
    watch = Watch()

    async def opens() -> None:
        with watch.until(loop.time() + 10):
            await asyncio.sleep(1)

    await asyncio.create_task(opens())
    with pytest.raises(TimeoutError), watch.until(loop.time() + 10):
        await asyncio.Event().wait()
    assert loop.time() == 1011
