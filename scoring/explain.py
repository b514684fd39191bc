"""Why a forecast is as high as it is: what each group of features adds to the log-odds, with the figures behind it.

The rule of this file: contributions add up. They are the Shapley values of the groups between the endpoint as it is and
the same endpoint with the group's features at their normal values (Lundberg and Lee, "A Unified Approach to
Interpreting Model Predictions", 2017, with one reference point). Six groups make 64 coalitions: the values are exact.
"""

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


def _coalitions() -> tuple[npt.NDArray[np.bool_], _Floats]:
    """Return the membership of every coalition (2^g × g), and the weights that turn their values into Shapley values
    (g × 2^g).
    """
    g = len(_GROUPS)
    present = np.array([[(number >> i) & 1 for i in range(g)] for number in range(2**g)], dtype=np.bool_)
    weights = np.zeros((g, 2**g))
    for i in range(g):
        others = [j for j in range(g) if j != i]
        for size in range(g):
            share = factorial(size) * factorial(g - size - 1) / factorial(g)
            for chosen in combinations(others, size):
                without = sum(1 << j for j in chosen)
                weights[i, without] -= share
                weights[i, without | (1 << i)] += share
    return present, weights


_PRESENT, _WEIGHTS = _coalitions()
# Which features take part in each coalition: 2^g × features.
_TAKES_PART = (_PRESENT.astype(np.int64) @ _MEMBERS.astype(np.int64)).astype(np.bool_)


def contributions(forecaster: Forecaster, row: _Floats) -> tuple[Contribution, ...]:
    """Explain one row of features (length len(FEATURES)), the group that raises the risk most first.

    The log-odds add up to those of the row minus those of a normal endpoint, both before calibration.
    """
    normal = forecaster.domain.normal
    shares = _WEIGHTS @ forecaster.log_odds(np.where(_TAKES_PART, row, normal))
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
