"""Time limits for waits that follow one another, such as those of one response for its pieces.

`asyncio.timeout_at` sets and clears a timer for every wait. Here all waits of a row share one timer, which finds out
when it rings whether its time has moved on meanwhile: a wait that ends in time costs a few assignments.
"""

import asyncio
from types import TracebackType


class Watch:
    """Ends a wait that takes too long with TimeoutError, as `asyncio.timeout_at` does.

    `with watch.until(due): await …` is for one wait at a time, each in whatever task. Whoever has a watch closes it, so
    that its timer does not outlive it; a wait that fails closes it itself.
    """

    __slots__ = ("_cancelling", "_due", "_has_rung", "_loop", "_rings_at", "_task", "_timer")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._due = 0.0
        self._has_rung = False

    def until(self, due: float) -> "Watch":
        """Set when the next wait ends at the latest, on the event loop's clock."""
        self._due = due
        return self

    def close(self) -> None:
        """Let go of the timer. A watch that is used again sets a new one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a watch is for waits of a task")
        self._task, self._cancelling = task, task.cancelling()
        if self._timer is not None and self._due < self._rings_at:
            self.close()
        if self._timer is None:
            self._set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if error is not None:
            self.close()
        if self._has_rung and task is not None:
            self._has_rung = False
            # Whoever else cancelled the task meanwhile comes first.
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _set(self) -> None:
        self._rings_at = self._due
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._task is None:
            return  # nobody waits: the next wait sets it again
        if self._loop.time() < self._due:
            self._set()
            return
        self._has_rung = True
        self._task.cancel()
