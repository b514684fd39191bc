"""Whether a candidate may be let near live traffic: it has to beat rules that need no model, and the champion.

The rule of this file: what counts is warning, and everybody is measured alike on the same later part of the history, at
thresholds chosen before it. Seconds of warning before each incident count up to a minute, a false alarm costs half a
minute. Differences are judged over whole blocks of time (a day by default), because hours of one day resemble each
other: a paired bootstrap over blocks (Efron and Tibshirani, 1993, chapter 8).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.alarms import DAY_S, Series, allowed, endpoint_days, episodes, false_alarms
from scoring.features import NAMES
from scoring.history_rows import Part
from scoring.metrics import Skill, lead_s, skill

_Floats = npt.NDArray[np.float64]
MAX_LEAD_S = 60.0
FALSE_ALARM_COST_S = 30.0
# A warning that began earlier than this before an incident speaks of something else.
LOOK_BACK_S = 300.0
_DETECT_WITHIN_S = 120.0
_RESAMPLES = 2000
_ONE_SIDED = 0.05
_RATE, _LIMITED, _SHIFT = (NAMES.index(name) for name in ("failure_rate_15s", "limited_rate_60s", "latency_shift_15s"))
_BREAKER_RATES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
_BREAKER_RATIOS = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0)


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who raises alarms: one risk per row of the part, and the threshold chosen beforehand."""

    name: str
    risk: _Floats
    threshold: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against one rival, in seconds of warning per endpoint-day; `low` to `high` holds 90 % of what the
    blocks let expect of the difference.
    """

    rival: str
    own: float
    other: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict. `reason` says in words what decided; `blocks` is how many blocks had something to tell."""

    passed: bool
    reason: str
    blocks: int
    skill: Skill
    champion_skill: Skill
    comparisons: tuple[Comparison, ...]
    late_s: float | None


def judge(
    part: Part, candidate: Contender, champion: Contender, rules: Sequence[Contender], *, block_s: float, tick_s: float
) -> GateReport:
    """Judge `candidate` on `part` against the serving `champion` and the `rules`. `tick_s` is the pace of the rows."""
    own, other = (_skill(part, contender) for contender in (candidate, champion))
    rng = np.random.default_rng(0)
    value = values(part, candidate, block_s)
    comparisons = tuple(
        _compare(part, rival.name, value, values(part, rival, block_s), rng) for rival in (champion, *rules)
    )
    late_s = _later(part, candidate, champion)
    reason = _objection(own, other, comparisons, late_s, tick_s)
    passed = not reason
    if passed:
        reason = "; ".join(f"{c.difference:+.1f} s of warning a day against {c.rival}" for c in comparisons)
    return GateReport(passed, reason, len(value), own, other, comparisons, late_s)


def _objection(own: Skill, other: Skill, comparisons: Sequence[Comparison], late_s: float | None, tick_s: float) -> str:
    """Return why the candidate may not pass, or nothing."""
    if own.brier_skill is None or own.brier is None:
        return "the part to compare on has one class only"
    if own.brier_skill <= 0:
        return f"Brier skill {own.brier_skill:.3f}: expected above 0"
    against_champion, *against_rules = comparisons
    for comparison in against_rules:
        if comparison.low < 0:
            found = f"{comparison.difference:+.1f} s of warning a day ({comparison.low:+.1f} to {comparison.high:+.1f})"
            return f"not shown to beat {comparison.rival}: {found}"
    if against_champion.difference < 0:
        return f"{-against_champion.difference:.1f} s of warning a day less than {against_champion.rival}"
    if other.brier is not None and own.brier > 1.05 * other.brier:
        return f"Brier score {own.brier:.5f} against {other.brier:.5f} of {against_champion.rival}"
    if late_s is not None and late_s > tick_s:
        return f"sees abrupt trouble {late_s:.1f} s later than {against_champion.rival}: expected within {tick_s:g} s"
    return ""


def _skill(part: Part, contender: Contender) -> Skill:
    return skill(part.y[part.usable], contender.risk[part.usable])


def values(part: Part, contender: Contender, block_s: float) -> dict[int, float]:
    """Return the seconds of warning won in each block of `block_s`, false alarms taken off; blocks in which rows lie
    but nothing happened count 0.
    """
    won: dict[int, float] = defaultdict(float)
    for block in np.unique((part.time[part.judged] / block_s).astype(np.int64)):
        won[int(block)] += 0.0
    for series in part.series(contender.risk):
        for incident in _within(series):
            lead = lead_s(series.time, series.risk, contender.threshold, incident - LOOK_BACK_S, incident)
            won[int(incident / block_s)] += min(lead or 0.0, MAX_LEAD_S)
        for begun, _ in episodes(series.time, series.risk, contender.threshold):
            alone = Series(np.array([begun]), np.array([1.0]), series.incidents)
            won[int(begun / block_s)] -= FALSE_ALARM_COST_S * false_alarms(alone, 0.5)
    return won


def _within(series: Series) -> list[float]:
    return [start for start, _ in series.incidents if len(series.time) and series.time[0] <= start <= series.time[-1]]


def _compare(
    part: Part, rival: str, own: dict[int, float], other: dict[int, float], rng: np.random.Generator
) -> Comparison:
    blocks = sorted(own.keys() | other.keys())
    mine, theirs = (np.array([found.get(block, 0.0) for block in blocks]) for found in (own, other))
    days = max(endpoint_days(part.series(np.zeros(len(part.time)))), 1e-9)
    difference = mine - theirs
    n = len(blocks)
    resampled = difference[rng.integers(0, n, (_RESAMPLES, n))].sum(axis=1) / days if n else np.zeros(1)
    low, high = np.quantile(resampled, (_ONE_SIDED, 1 - _ONE_SIDED))
    return Comparison(
        rival, float(mine.sum() / days), float(theirs.sum() / days), float(difference.sum() / days), float(low),
        float(high),
    )  # fmt: skip


def _later(part: Part, candidate: Contender, champion: Contender) -> float | None:
    """Return by how many seconds the candidate's first alarm lies behind the champion's, at the median of the abrupt
    incidents: those that neither foresaw. None without such.
    """
    delays: list[float] = []
    for own, other in zip(part.series(candidate.risk), part.series(champion.risk), strict=True):
        for incident in _within(own):
            pair = [
                _delay_s(series, contender.threshold, incident)
                for series, contender in ((own, candidate), (other, champion))
            ]
            if all(delay >= 0 for delay in pair):
                delays.append(pair[0] - pair[1])
    return float(np.median(delays)) if delays else None


def _delay_s(series: Series, threshold: float, incident: float) -> float:
    """Return when the first alarm came after the beginning of an incident, in [0, 120]; negative when before it."""
    for begun, last in episodes(series.time, series.risk, threshold):
        if last >= incident or begun >= incident - LOOK_BACK_S:
            return min(begun - incident, _DETECT_WITHIN_S)
    return _DETECT_WITHIN_S


def breaker(x: _Floats, rate: float, ratio: float) -> _Floats:
    """Return 1 for each row of `x` at which a breaker on failure rate, rate limits and latency ratio is open, else
    0.
    """
    is_open = (x[:, _RATE] >= rate) | (x[:, _LIMITED] >= rate) | (x[:, _SHIFT] >= np.log(ratio))
    return np.asarray(is_open, dtype=np.float64)


def tuned_breaker(part: Part, max_per_day: float) -> tuple[float, float]:
    """Return the (rate, ratio) of a grid that win most warning on `part` while false alarms are shown to stay below
    `max_per_day` per endpoint-day; the strictest of the grid when none does.
    """
    best, found = -np.inf, (_BREAKER_RATES[-1], _BREAKER_RATIOS[-1])
    for rate in _BREAKER_RATES:
        for ratio in _BREAKER_RATIOS:
            contender = Contender("breaker", breaker(part.x, rate, ratio), 0.5)
            series = part.series(contender.risk)
            if sum(false_alarms(s, 0.5) for s in series) > max(0, allowed(max_per_day * endpoint_days(series))):
                continue
            value = sum(values(part, contender, DAY_S).values())
            if value > best:
                best, found = value, (rate, ratio)
    return found
