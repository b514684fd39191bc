"""Alarms: where a threshold would have spoken, whether it was right, and which threshold may speak.

The rule of this file: an alarm is an episode, not a tick. It begins when the risk reaches the threshold and ends when
the risk falls below half of it. It is false when no incident lies between 60 s before and 300 s after its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, lgamma, log

import numpy as np
import numpy.typing as npt

EXIT_RATIO = 0.5
BEFORE_S = 60.0
AFTER_S = 300.0
DAY_S = 86_400.0
_CONFIDENCE = 0.95
_STRICTEST = 0.98

_Floats = npt.NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One endpoint's risks over time (seconds, ascending, same length), and its incidents as [start, end] intervals."""

    time: _Floats
    risk: _Floats
    incidents: tuple[Interval, ...]


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """A threshold with the false alarms it raised in `days` endpoint-days."""

    threshold: float
    false_alarms: int
    days: float

    @property
    def per_day(self) -> float:
        """False alarms per endpoint-day."""
        return self.false_alarms / self.days if self.days else 0.0


def episodes(time: _Floats, risk: _Floats, threshold: float) -> list[Interval]:
    """Return the alarms as [first tick, last tick] intervals."""
    found: list[Interval] = []
    begun: float | None = None
    # Only where the risk crosses one of the two levels can anything change.
    level = (risk >= threshold).astype(np.int8) + (risk >= threshold * EXIT_RATIO)
    changes = np.flatnonzero(np.diff(level, prepend=np.int8(-1)))
    for i in changes:
        if begun is None and level[i] == 2:
            begun = float(time[i])
        elif begun is not None and level[i] == 0:
            found.append((begun, float(time[i - 1])))
            begun = None
    if begun is not None:
        found.append((begun, float(time[-1])))
    return found


def false_alarms(series: Series, threshold: float) -> int:
    """Count the alarms of one endpoint with no incident near their beginning."""
    return sum(
        not any(start <= begun + AFTER_S and end >= begun - BEFORE_S for start, end in series.incidents)
        for begun, _ in episodes(series.time, series.risk, threshold)
    )


def endpoint_days(all_series: Sequence[Series]) -> float:
    """Return the observed time of all endpoints, in days."""
    return sum(float(s.time[-1] - s.time[0]) for s in all_series if len(s.time)) / DAY_S


def allowed(mean: float) -> int:
    """Return the largest count whose exact 95 % upper bound is at most `mean` events; -1 when not even 0 is.

    Garwood, "Fiducial limits for the Poisson distribution", Biometrika 1936.
    """
    if mean <= 0:
        return -1
    count, below = -1, 0.0
    while True:
        below += exp((count + 1) * log(mean) - mean - lgamma(count + 2))
        if below > 1 - _CONFIDENCE:
            return count
        count += 1


def choose_threshold(all_series: Sequence[Series], max_per_day: float) -> ThresholdChoice:
    """Return the lowest threshold of a grid in [0.02, 0.98] at which, and above which, false alarms are shown to stay
    below `max_per_day` per endpoint-day: not their count but its 95 % upper bound has to.

    Tested strictest first, so that a lucky low threshold below a bad one is not taken. With too little evidence the
    answer is 0.98.
    """
    days = endpoint_days(all_series)
    limit = allowed(max_per_day * days)
    chosen = ThresholdChoice(_STRICTEST, sum(false_alarms(series, _STRICTEST) for series in all_series), days)
    for percent in range(98, 1, -1):
        threshold = percent / 100
        count = sum(false_alarms(series, threshold) for series in all_series)
        if count > limit:
            break
        chosen = ThresholdChoice(threshold, count, days)
    return chosen
