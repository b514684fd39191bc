"""When an endpoint was degraded, from its attempts alone: the ground truth of training and of evaluation.

The rule of this file is that of `analytics/sql/macros.sql`, in Python, for worlds that never become history: an
integration test holds the two together. Degraded is judged at every attempt when its outcome becomes known: in the
last 30 s at least 3 failures that are at least 10 % of the attempts, or at least 5 successes whose median TTFT is at
least 2.5 times the endpoint's own baseline (the 30 minutes before, newest five left out). A rate limit counts as a
failure here: callers see it as one.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from routing.outcomes import TRAITS, Outcome, Signal

HORIZON_S = 60.0
_RECENT_S = 30.0
_BASELINE_FROM_S = 1800.0
_BASELINE_TO_S = 300.0
_MIN_FAILURES = 3
_FAILURE_SHARE = 0.1
_MIN_TIMED = 5
_SLOW_RATIO = 2.5


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt when it ended: `time` in seconds, and the time to its first byte if it streamed and succeeded."""

    time: float
    outcome: Outcome
    ttft_s: float | None


@dataclass(frozen=True, slots=True)
class Labels:
    """Per asked moment: `y` (int8), 1 if degraded at any time in (t, t + horizon]; `known` (bool), False where the end
    of the record falls inside, and where nothing was found by fewer than 3 attempts per 30 s: so few could hardly show
    trouble, and an endpoint whose traffic was moved away must not be called healthy for want of witnesses.
    """

    y: npt.NDArray[np.int8]
    known: npt.NDArray[np.bool_]


class _Median:
    """Exact median of a span of time that slides forward."""

    __slots__ = ("_arrived", "_sorted")

    def __init__(self) -> None:
        self._arrived: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def add(self, time: float, value: float) -> None:
        self._arrived.append((time, value))
        insort(self._sorted, value)

    def forget_before(self, time: float) -> None:
        while self._arrived and self._arrived[0][0] < time:
            del self._sorted[bisect_left(self._sorted, self._arrived.popleft()[1])]

    def __len__(self) -> int:
        return len(self._sorted)

    def value(self) -> float:
        middle, odd = divmod(len(self._sorted), 2)
        return self._sorted[middle] if odd else (self._sorted[middle - 1] + self._sorted[middle]) / 2


def _is_evidence(attempt: Attempt) -> bool:
    traits = TRAITS[attempt.outcome]
    return traits.failed or traits.signal in (Signal.SUCCESS, Signal.QUOTA)


def degraded_moments(attempts: Sequence[Attempt]) -> list[float]:
    """The times at which one endpoint was degraded; `attempts` in order of time."""
    evidence = [a for a in attempts if _is_evidence(a)]
    timed = [(a.time, a.ttft_s) for a in evidence if a.outcome is Outcome.OK and a.ttft_s is not None]
    moments: list[float] = []
    recent, baseline = _Median(), _Median()
    failures: deque[float] = deque()
    first = next_timed = next_old = 0
    for i, attempt in enumerate(evidence):
        now = attempt.time
        if attempt.outcome is not Outcome.OK:
            failures.append(now)
        if i + 1 < len(evidence) and evidence[i + 1].time == now:
            continue
        while failures and failures[0] < now - _RECENT_S:
            failures.popleft()
        while evidence[first].time < now - _RECENT_S:
            first += 1
        while next_timed < len(timed) and timed[next_timed][0] <= now:
            recent.add(*timed[next_timed])
            next_timed += 1
        while next_old < len(timed) and timed[next_old][0] <= now - _BASELINE_TO_S:
            baseline.add(*timed[next_old])
            next_old += 1
        recent.forget_before(now - _RECENT_S)
        baseline.forget_before(now - _BASELINE_FROM_S)
        failing = len(failures) >= _MIN_FAILURES and len(failures) >= _FAILURE_SHARE * (i + 1 - first)
        slow = len(recent) >= _MIN_TIMED and len(baseline) > 0 and recent.value() >= _SLOW_RATIO * baseline.value()
        if failing or slow:
            moments.append(now)
    return moments


def labels(
    attempts: Sequence[Attempt], moments: Sequence[float], times: Sequence[float], horizon_s: float = HORIZON_S
) -> Labels:
    """What followed each of `times`; `moments` are the degraded ones of `attempts`, both in order."""
    ends = [a.time for a in attempts if _is_evidence(a)]
    y = np.zeros(len(times), dtype=np.int8)
    known = np.zeros(len(times), dtype=np.bool_)
    last, enough = ends[-1] if ends else 0.0, _MIN_FAILURES * horizon_s / _RECENT_S
    for row, time in enumerate(times):
        due = time + horizon_s
        after = bisect_right(moments, time)
        y[row] = after < len(moments) and moments[after] <= due
        known[row] = due <= last and (y[row] or bisect_right(ends, due) - bisect_right(ends, time) >= enough)
    return Labels(y, known)
