"""How good a forecast is: ranking, calibration, and how early it spoke.

The rule of this file: figures without evidence are None, never 0 or 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.alarms import episodes

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Skill:
    """Row-wise figures of `rows` forecasts.

    `base_rate`: share of positives. `pr_auc`: average precision. `brier`: mean squared error; `brier_skill`: 1 minus
    its ratio to that of always forecasting the base rate (at most 1; 0 is no better than that).
    """

    rows: int
    base_rate: float
    pr_auc: float | None
    brier: float | None
    brier_skill: float | None


@dataclass(frozen=True, slots=True)
class Caught:
    """Incidents of one kind: how many became harmful, which share an alarm preceded, and the median lead in seconds.

    `median_possible_s` is the median time from the beginning of the trouble to its harm: no lead can be longer.
    """

    incidents: int
    early_recall: float | None
    median_lead_s: float | None
    median_possible_s: float | None


def skill(y: _Labels, risk: _Floats) -> Skill:
    """Judge `risk` (n, in [0, 1]) by what followed, `y` (n, 0 or 1)."""
    n = len(y)
    if not n:
        return Skill(0, 0.0, None, None, None)
    rate = float(y.mean())
    brier = float(np.mean((risk - y) ** 2))
    usual = rate * (1 - rate)
    return Skill(n, rate, average_precision(y, risk), brier, 1 - brier / usual if usual else None)


def average_precision(y: _Labels, risk: _Floats) -> float | None:
    """Return the area under the precision-recall curve as the step-wise sum scikit-learn takes; None without
    positives.
    """
    positives = int(y.sum())
    if not positives:
        return None
    order = np.argsort(-risk, kind="stable")
    hits = np.cumsum(y[order])
    last_of_tie = np.flatnonzero(np.append(np.diff(risk[order]) != 0, True))
    recall = hits[last_of_tie] / positives
    precision = hits[last_of_tie] / (last_of_tie + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def lead_s(time: _Floats, risk: _Floats, threshold: float, begins: float, harmful: float) -> float | None:
    """Return how many seconds before `harmful` an alarm was on, looking no further back than `begins`.

    None when no alarm was on in [begins, harmful).
    """
    for start, end in episodes(time, risk, threshold):
        if end >= begins and start < harmful:
            return harmful - max(start, begins)
    return None


def caught(found: Sequence[tuple[float | None, float]]) -> Caught:
    """Sum up incidents that became harmful, each as (lead or None without an early alarm, longest possible lead)."""
    early = [lead for lead, _ in found if lead is not None]
    return Caught(
        incidents=len(found),
        early_recall=len(early) / len(found) if found else None,
        median_lead_s=float(np.median(early)) if early else None,
        median_possible_s=float(np.median([possible for _, possible in found])) if found else None,
    )
