"""What the rows say: means, and how sure they are.

The rule of this file: a policy is compared with the reference on the same worlds only (paired), and confidence comes
from resampling the seeds of each scenario (a stratified bootstrap, 95 %). A metric without evidence in a run leaves
that run out of its mean. The share of avoidable badness is that of the sums over runs, not a mean of ratios.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sim.scorecard.runner import Row

_RESAMPLES = 2000
_SEED = 7
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval; None where there is no evidence."""

    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One policy on the card: each metric's mean, and its mean difference to the reference on the same worlds."""

    policy: str
    metrics: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]


def summarise(rows: Sequence[Row], reference: str) -> list[Line]:
    """Return a line per policy, in the order of the rows.

    Raises:
        ValueError: the reference is not among the rows.
    """
    policies = list(dict.fromkeys(row.policy for row in rows))
    if reference not in policies:
        raise ValueError(f"reference: expected one of {', '.join(policies)}, got {reference!r}")
    tables = {policy: _table([row for row in rows if row.policy == policy]) for policy in policies}
    lines = []
    for policy in policies:
        avoidable = tables[policy]["avoidable_per_1k"]
        metrics, differences = {}, {}
        for name, table in tables[policy].items():
            weights = avoidable if name == "avoidable_removed" else None
            paired = [one - other for one, other in zip(table, tables[reference][name], strict=True)]
            metrics[name], differences[name] = estimate(table, weights), estimate(paired, weights)
        lines.append(Line(policy, metrics, differences))
    return lines


def estimate(groups: Sequence[_Floats], weights: Sequence[_Floats] | None = None) -> Estimate:
    """Return the weighted mean over all values of all groups, and its interval from resampling within each group.

    Args:
        groups: the values, an array per scenario; NaN is no evidence.
        weights: of the same shape; 1 by default. Weighing ratios by their denominators gives the ratio of the sums.
    """
    rng = np.random.default_rng(_SEED)
    total, weight = 0.0, 0.0
    totals, drawn = np.zeros(_RESAMPLES), np.zeros(_RESAMPLES)
    for values, given in zip(groups, weights or [np.ones_like(group) for group in groups], strict=True):
        known = ~np.isnan(values)
        if not known.any():
            continue
        heavy, product = given[known], (values * given)[known]
        total, weight = total + float(product.sum()), weight + float(heavy.sum())
        picks = rng.integers(len(product), size=(_RESAMPLES, len(product)))
        totals += product[picks].sum(axis=1)
        drawn += heavy[picks].sum(axis=1)
    if not weight:
        return Estimate(None, None, None)
    low, high = np.percentile(totals / drawn, [2.5, 97.5])
    return Estimate(total / weight, float(low), float(high))


def _table(rows: Sequence[Row]) -> dict[str, list[_Floats]]:
    """Return the values of each metric, an array over seeds per scenario; NaN where there is none."""
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    groups = [[row for row in rows if row.scenario == scenario] for scenario in scenarios]
    return {
        name: [np.array([row.metrics[name] for row in group], dtype=np.float64) for group in groups]
        for name in rows[0].metrics
    }
