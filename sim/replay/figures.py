"""What the runs of one policy add up to, and how sure that is.

The rule of this file: a rate over hours is weighted by what it is a rate of (requests, or time) and by how many hours
each hour stands for. Intervals are 95 %, from resampling hours within their stratum and, in each, one of the drawn
worlds: they hold both doubts, about other hours and about what really happened in these.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sim.replay.play import Played
from sim.scorecard.definitions import DAY_S
from sim.scorecard.summary import Estimate

_RESAMPLES = 2000
_SEED = 11
# Resampling fewer hours than this within a stratum would show no doubt where there is most.
_FEWEST = 3
_PER_DAY = frozenset({"false_failovers_per_day", "switches_per_day"})
_EVENLY = frozenset({"detect_s", "missed", "early_recall", "lead_s", "recovery_delay_s"})

_Floats = npt.NDArray[np.float64]
Value = Callable[[Played], float | None]


def figure(runs: Sequence[Played], name: str, strata: Sequence[object], stands_for: Sequence[float]) -> Estimate:
    """Return one metric of one player, over all its runs.

    Args:
        runs: by playable and seed, as `play` gives them for one player.
        name: of a metric of `sim.scorecard.definitions`.
        strata, stands_for: of each playable.
    """
    weigh: Value = (lambda run: run.seconds) if name in _PER_DAY else (lambda run: run.requests)
    if name in _EVENLY:
        weigh = _one
    return estimate(runs, lambda run: run.metrics[name], weigh, strata, stands_for)


def _one(_: Played) -> float:
    return 1.0


def estimate(
    runs: Sequence[Played], value: Value, weigh: Value, strata: Sequence[object], stands_for: Sequence[float]
) -> Estimate:
    """Return the weighted mean of `value` with its interval; without evidence, or from one hour, parts are None."""
    places = sorted({run.place for run in runs})
    seeds = sorted({run.seed for run in runs})
    of = {(run.place, run.seed): run for run in runs}
    rng = np.random.default_rng(_SEED)
    total, weight = 0.0, 0.0
    totals, drawn = np.zeros(_RESAMPLES), np.zeros(_RESAMPLES)
    for own in _groups(places, strata):
        cells = [[of[place, seed] for seed in seeds] for place in own]
        values = np.array([[value(run) for run in row] for row in cells], dtype=np.float64)
        weights = np.array([[weigh(run) for run in row] for row in cells], dtype=np.float64)
        weights *= np.array([stands_for[place] for place in own])[:, None]
        weights[np.isnan(values)] = 0.0
        product = np.nan_to_num(values) * weights
        total, weight = total + float(product.sum()), weight + float(weights.sum())
        hours = rng.integers(len(own), size=(_RESAMPLES, len(own)))
        worlds = rng.integers(len(seeds), size=(_RESAMPLES, len(own)))
        totals += product[hours, worlds].sum(axis=1)
        drawn += weights[hours, worlds].sum(axis=1)
    if not weight:
        return Estimate(None, None, None)
    with np.errstate(invalid="ignore"):
        resampled = totals / drawn
    if len(places) < 2:
        return Estimate(total / weight, None, None)
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(total / weight, float(low), float(high))


def _groups(places: Sequence[int], strata: Sequence[object]) -> list[list[int]]:
    """Group playables by stratum; all together when one has too few to resample within it."""
    groups = [[p for p in places if strata[p] == stratum] for stratum in dict.fromkeys(strata[p] for p in places)]
    return groups if all(len(group) >= _FEWEST for group in groups) else [list(places)]


def difference(
    runs: Sequence[Played], reference: Sequence[Played], value: Value, weigh: Value,
    strata: Sequence[object], stands_for: Sequence[float],
) -> Estimate:  # fmt: skip
    """Return the mean difference of two players' values on the same worlds, with its interval."""
    other = {(run.place, run.seed): value(run) for run in reference}

    def paired(run: Played) -> float | None:
        one, two = value(run), other[run.place, run.seed]
        return None if one is None or two is None else one - two

    return estimate(runs, paired, weigh, strata, stands_for)


def false_failovers(runs: Sequence[Played]) -> tuple[int, float]:
    """Return how many there were, and over how many provider-days of the preferred endpoints' providers."""
    counts = (round((run.metrics["false_failovers_per_day"] or 0.0) * run.seconds / DAY_S) for run in runs)
    return sum(counts), sum(run.seconds for run in runs) / DAY_S


def only(runs: Sequence[Played], player: str) -> list[Played]:
    """Return the runs of one player."""
    return [run for run in runs if run.player == player]
