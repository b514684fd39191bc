"""Watches a serving forecaster: what it said is compared with what followed, and doubts are raised.

The rule of this file: a doubt that costs callers something takes the forecaster out of service (it is worse than always
forecasting the usual rate, or it raises too many false alarms); one that does not (features have moved, probabilities
are off by a factor) asks for retraining. Time comes in, memory is bounded, nothing is written here.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, sqrt

import numpy as np
import numpy.typing as npt

from routing.window import Window
from scoring.alarms import AFTER_S, BEFORE_S, DAY_S, EXIT_RATIO
from scoring.degradation import enough_attempts
from scoring.domain import Domain
from scoring.drift import Histograms, PageHinkley, stability_index
from scoring.features import NAMES
from scoring.reading import Reading

_Floats = npt.NDArray[np.float64]
SAMPLE_S = 10.0
BLOCK_S = 600.0
# A block's loss is counted in units of the variance of its labels: 1 is as bad as knowing nothing, and certain of it.
_DELTA, _LIMIT = 0.1, 4.0
_BASE_EVENTS, _BASE_RATE = 20.0, 0.005
_MAX_FALSE_PER_DAY = 10.0
_MIN_CALIBRATION_BLOCKS = 36
_CALIBRATION_FACTOR, _CALIBRATION_Z = 3.0, 4.0
_REFERENCE_ROWS, _CURRENT_ROWS = 20_000, 5_000
_MAX_STABILITY_INDEX = 0.5


@dataclass(frozen=True, slots=True)
class Doubt:
    """What speaks against the forecaster: a figure beyond its limit. `grave` means that it should no longer serve."""

    metric: str
    value: float
    limit: float
    grave: bool
    note: str


@dataclass(frozen=True, slots=True)
class _Said:
    time: float
    risk: float


@dataclass(slots=True)
class _Watched:
    """One endpoint: what was said and is not yet judged, when it was last degraded, alarms that may prove false."""

    said: deque[_Said] = field(default_factory=deque)
    last_degraded: float = -1e18
    in_alarm: bool = False
    alarms: deque[float] = field(default_factory=deque)


class Monitor:
    """Judges one forecaster from the moment it serves."""

    def __init__(self, domain: Domain, horizon_s: float, endpoints: int) -> None:
        self._horizon_s = horizon_s
        self._watched = [_Watched() for _ in range(endpoints)]
        self._next_sample = -1e18
        self._block = -1
        self._losses: list[tuple[float, float]] = []
        self._events, self._seen = _BASE_EVENTS, _BASE_EVENTS / _BASE_RATE
        self._against_nothing = PageHinkley(_DELTA, _LIMIT, target=0.0)
        self._against_itself = PageHinkley(_DELTA, 2 * _LIMIT)
        self._excess: deque[tuple[float, float]] = deque(maxlen=1008)
        self._false_alarms = 0
        self._observed_s = 0.0
        self._last_at = -1.0
        self._domain = domain
        self._reference, self._current = Histograms(domain.deciles), Histograms(domain.deciles)

    def step(
        self, now: float, windows: Sequence[Window], x: _Floats, risks: Sequence[float | None], threshold: float
    ) -> list[Doubt]:
        """Take one tick of all endpoints (x: n × features, risks None without a forecast); return what speaks against
        the forecaster since the last call.
        """
        doubts: list[Doubt] = []
        sampling = now >= self._next_sample
        if sampling:
            self._next_sample = now + SAMPLE_S
            doubts += self._features(x[[risk is not None for risk in risks]])
            for watched, degraded in zip(self._watched, Reading(windows, now).degraded, strict=True):
                if degraded:
                    watched.last_degraded = now
        for watched, window, risk in zip(self._watched, windows, risks, strict=True):
            self._judge(watched, window, now)
            self._watch_alarms(watched, risk, threshold, now)
            if sampling and risk is not None:
                watched.said.append(_Said(now, risk))
        if 0 < self._last_at < now:
            self._observed_s += (now - self._last_at) * sum(risk is not None for risk in risks)
        self._last_at = now
        if int(now / BLOCK_S) != self._block:
            self._block = int(now / BLOCK_S)
            doubts += self._close_block()
        return doubts

    def _judge(self, watched: _Watched, window: Window, now: float) -> None:
        while watched.said and watched.said[0].time + self._horizon_s <= now:
            said = watched.said.popleft()
            y = watched.last_degraded > said.time
            span = int(min(300.0, self._horizon_s))
            if y or window.sums(now, span).answered >= enough_attempts(span):
                self._losses.append((said.risk, float(y)))

    def _watch_alarms(self, watched: _Watched, risk: float | None, threshold: float, now: float) -> None:
        alarmed = risk is not None and risk >= threshold
        if alarmed and not watched.in_alarm:
            watched.alarms.append(now)
        watched.in_alarm = alarmed or (watched.in_alarm and risk is not None and risk >= threshold * EXIT_RATIO)
        while watched.alarms and watched.alarms[0] + AFTER_S <= now:
            self._false_alarms += watched.last_degraded < watched.alarms.popleft() - BEFORE_S

    def _close_block(self) -> list[Doubt]:
        block, self._losses = self._losses, []
        doubts = self._too_many_alarms()
        if not block:
            return doubts
        risk, y = (np.array(values) for values in zip(*block, strict=True))
        base = self._events / self._seen
        excess = float(np.mean((risk - y) ** 2 - (base - y) ** 2)) / (base * (1 - base))
        self._events, self._seen = self._events + y.sum(), self._seen + len(y)
        # One block may not decide alone, however bad it was.
        excess = min(1.0, max(-1.0, excess))
        if self._against_nothing.add(excess):
            note = "its Brier score is worse than that of the usual rate"
            doubts.append(Doubt("loss", self._against_nothing.statistic, _LIMIT, grave=True, note=note))
        if self._against_itself.add(excess):
            note = "its Brier score has risen above what it used to be"
            doubts.append(Doubt("loss_rise", self._against_itself.statistic, 2 * _LIMIT, grave=False, note=note))
            self._against_itself = PageHinkley(_DELTA, 2 * _LIMIT)
        self._excess.append((float(y.sum()), float(risk.sum())))
        return doubts + self._calibration()

    def _too_many_alarms(self) -> list[Doubt]:
        days = self._observed_s / DAY_S
        mean = _MAX_FALSE_PER_DAY * days
        # Four standard deviations of a Poisson count above the budget, and never a handful.
        most = max(5.0, mean + 4 * sqrt(mean))
        if self._false_alarms <= most:
            return []
        per_day = self._false_alarms / max(days, 1e-9)
        note = f"{self._false_alarms} false alarms in {days:.2f} endpoint-days"
        return [Doubt("false_alarms_per_day", per_day, _MAX_FALSE_PER_DAY, grave=True, note=note)]

    def _calibration(self) -> list[Doubt]:
        """Compare what came with what was expected, block by block: blocks are nearly independent, rows are not."""
        if len(self._excess) < _MIN_CALIBRATION_BLOCKS:
            return []
        came, expected = (np.array(values) for values in zip(*self._excess, strict=True))
        off = came - expected
        z = float(off.sum() / np.sqrt(np.sum(off * off) + 1e-12))
        ratio = (came.sum() + 1.0) / (expected.sum() + 1.0)
        if abs(z) < _CALIBRATION_Z or abs(log(ratio)) < log(_CALIBRATION_FACTOR):
            return []
        self._excess.clear()
        note = f"{came.sum():.0f} degraded moments came where {expected.sum():.1f} were forecast"
        return [Doubt("calibration_in_the_large", float(ratio), _CALIBRATION_FACTOR, grave=False, note=note)]

    def _features(self, x: _Floats) -> list[Doubt]:
        """Compare the features of now with those of the forecaster's first hours in service."""
        if not len(x):
            return []
        if self._reference.rows < _REFERENCE_ROWS:
            self._reference.add(x)
            return []
        self._current.add(x)
        if self._current.rows < _CURRENT_ROWS:
            return []
        moved = stability_index(self._reference, self._current)
        self._current = Histograms(self._domain.deciles)
        return [
            Doubt(
                f"stability_index:{NAMES[i]}", float(moved[i]), _MAX_STABILITY_INDEX, grave=False,
                note="the feature is distributed otherwise than in the forecaster's first hours",
            )
            for i in np.flatnonzero(moved > _MAX_STABILITY_INDEX)
        ]  # fmt: skip
