"""When an endpoint was degraded, from its attempts alone: the ground truth of training and of evaluation.

The rule of this file is that of `analytics/sql/macros.sql`, in Python, for worlds that never become history: an
integration test holds the two together. Degraded (`scoring/degradation.py`) is judged at every attempt when its outcome
becomes known, slowness at successes alone. A rate limit counts as a failure here: callers see it as one.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np
import numpy.typing as npt

from routing.outcomes import TRAITS, Outcome, Signal
from scoring.degradation import (
    BASELINE_FROM_S,
    BASELINE_TO_S,
    ENOUGH,
    LONGEST_S,
    RECENT_S,
    SLOW_QUANTILE,
    enough_attempts,
    fails,
    is_slow,
)

HORIZON_S = 60.0

_Floats = npt.NDArray[np.float64]


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


class _Sorted:
    """Exact quantiles of the newest values."""

    __slots__ = ("_arrived", "_sorted")

    def __init__(self) -> None:
        self._arrived: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []

    def add(self, time: float, value: float) -> None:
        self._arrived.append((time, value))
        insort(self._sorted, value)

    def forget_before(self, time: float, keep: int = 0) -> None:
        while len(self._arrived) > keep and self._arrived[0][0] < time:
            del self._sorted[bisect_left(self._sorted, self._arrived.popleft()[1])]

    def __len__(self) -> int:
        return len(self._sorted)

    def quantile(self, share: float) -> float:
        below, part = divmod(share * (len(self._sorted) - 1), 1.0)
        low = self._sorted[int(below)]
        return low + part * (self._sorted[int(below) + 1] - low) if part else low


def _is_evidence(attempt: Attempt) -> bool:
    traits = TRAITS[attempt.outcome]
    return traits.failed or traits.signal in (Signal.SUCCESS, Signal.QUOTA)


def degraded_moments(attempts: Sequence[Attempt]) -> list[float]:
    """The times at which one endpoint was degraded; `attempts` in order of time."""
    evidence = [a for a in attempts if _is_evidence(a)]
    times = np.array([a.time for a in evidence])
    failed = np.cumsum([0, *(a.outcome is not Outcome.OK for a in evidence)])
    moments = np.unique(times)
    end = np.searchsorted(times, moments, side="right")
    recent, late, oldest = (np.searchsorted(times, moments - s) for s in (RECENT_S, LONGEST_S, BASELINE_FROM_S))
    begin = np.minimum(recent, np.maximum(late, end - ENOUGH))
    settled = np.searchsorted(times, moments - BASELINE_TO_S, side="right")
    failing = fails(failed[end] - failed[begin], end - begin, failed[settled] - failed[oldest], settled - oldest)
    timed = [(a.time, a.ttft_s) for a in evidence if a.outcome is Outcome.OK and a.ttft_s is not None]
    return sorted({*moments[failing].tolist(), *_slow_moments(timed)})


def _slow_moments(timed: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Yield when successes showed that the endpoint is slow, from their times and latencies."""
    recent, usual = _Sorted(), _Sorted()
    settled = 0
    for (now, value), (following, _) in pairwise([*timed, (inf, 0.0)]):
        recent.add(now, value)
        if following == now:
            continue
        while settled < len(timed) and timed[settled][0] <= now - BASELINE_TO_S:
            usual.add(*timed[settled])
            settled += 1
        recent.forget_before(now - RECENT_S, keep=ENOUGH)
        recent.forget_before(now - LONGEST_S)
        usual.forget_before(now - BASELINE_FROM_S)
        if usual and is_slow(recent.quantile(0.5), len(recent), usual.quantile(0.5), usual.quantile(SLOW_QUANTILE)):
            yield now


def labels(
    attempts: Sequence[Attempt], moments: Sequence[float], times: Sequence[float], horizon_s: float = HORIZON_S
) -> Labels:
    """What followed each of `times`; `moments` are the degraded ones of `attempts`, both in order."""
    ends = [a.time for a in attempts if _is_evidence(a)]
    y = np.zeros(len(times), dtype=np.int8)
    known = np.zeros(len(times), dtype=np.bool_)
    last, enough = ends[-1] if ends else 0.0, enough_attempts(horizon_s)
    for row, time in enumerate(times):
        due = time + horizon_s
        after = bisect_right(moments, time)
        y[row] = after < len(moments) and moments[after] <= due
        known[row] = due <= last and (y[row] or bisect_right(ends, due) - bisect_right(ends, time) >= enough)
    return Labels(y, known)
