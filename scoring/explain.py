"""Why a forecast is as high as it is: what each group of features adds to the log-odds, with the figures behind it.

The rule of this file: contributions add up. They are the Shapley values of the groups between the endpoint as it is and
the same endpoint with the group's features at their normal values (Lundberg and Lee, "A Unified Approach to
Interpreting Model Predictions", 2017, with one reference point). Six groups make 64 coalitions: the values are exact.
"""

from functools import cache
from itertools import combinations
from math import factorial

import numpy as np
import numpy.typing as npt

from scoring.features import FEATURES, NAMES, Group
from scoring.forecaster import Forecaster
from scoring.reasons import Contribution, Figure

_Floats = npt.NDArray[np.float64]
_GROUPS = tuple(Group)
_MEMBERS = np.array([[feature.group is group for feature in FEATURES] for group in _GROUPS])
_FIGURES_PER_GROUP = 2


@cache
def _coalitions(groups: int) -> tuple[npt.NDArray[np.bool_], _Floats]:
    """Return the membership of every coalition of so many groups (2^g × g), and the weights that turn their values into
    Shapley values (g × 2^g).
    """
    present = np.array([[(number >> i) & 1 for i in range(groups)] for number in range(2**groups)], dtype=np.bool_)
    weights = np.zeros((groups, 2**groups))
    for i in range(groups):
        others = [j for j in range(groups) if j != i]
        for size in range(groups):
            share = factorial(size) * factorial(groups - size - 1) / factorial(groups)
            for chosen in combinations(others, size):
                without = sum(1 << j for j in chosen)
                weights[i, without] -= share
                weights[i, without | (1 << i)] += share
    return present, weights


def contributions(forecaster: Forecaster, row: _Floats) -> tuple[Contribution, ...]:
    """Explain one row of features (length len(FEATURES)), the group that raises the risk most first.

    The log-odds add up to those of the row minus those of a normal endpoint, both before calibration.
    """
    normal = forecaster.domain.normal
    # A group that is all normal adds nothing, and each one left out halves the work.
    moved = np.flatnonzero((_MEMBERS & (row != normal)).any(axis=1))
    present, weights = _coalitions(len(moved))
    takes_part = (present.astype(np.int64) @ _MEMBERS[moved].astype(np.int64)).astype(np.bool_)
    shares = np.zeros(len(_GROUPS))
    shares[moved] = weights @ forecaster.log_odds(np.where(takes_part, row, normal))
    # How far is far: in units of the spread the feature had in training.
    spread = np.maximum(forecaster.domain.deciles[-1] - forecaster.domain.deciles[0], 1e-6)
    distance = np.abs(row - normal) / spread
    found = []
    for i in np.argsort(-shares, kind="stable"):
        members = np.flatnonzero(_MEMBERS[i])
        furthest = members[np.argsort(-distance[members], kind="stable")][:_FIGURES_PER_GROUP]
        figures = tuple(Figure(NAMES[f], float(row[f]), float(normal[f])) for f in furthest)
        found.append(Contribution(_GROUPS[i].value, float(shares[i]), figures))
    return tuple(found)
