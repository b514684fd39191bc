"""What a forecaster was trained on, feature by feature: where its word counts, what is normal, and how much has moved.

The rule of this file: a feature that may only raise the risk cannot leave the domain upwards, and neither can one that
counts evidence. Trees and clipped sums go on saying "as bad as the worst I know" there, which is right, and a busier
endpoint than any in training is only better known. Everywhere else outside the range, nobody knows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scoring.features import FEATURES, Group

_Floats = npt.NDArray[np.float64]
_Labels = npt.NDArray[np.int8]
_TAIL = 0.0005
# The range is widened by this share of itself: its ends are estimates.
_MARGIN = 0.25
_DECILES = np.linspace(0.1, 0.9, 9)
# So many features may leave their range without the forecast losing its word.
MAX_OUTSIDE = 2
_FREE_ABOVE = np.array([feature.direction == 1 or feature.group is Group.TRAFFIC for feature in FEATURES])


@dataclass(frozen=True, slots=True)
class Domain:
    """One value per feature: `low` and `high` bound the range, `normal` is the median while nothing was wrong;
    `deciles` (9 × features) are those of all training rows.
    """

    low: _Floats
    high: _Floats
    normal: _Floats
    deciles: _Floats

    def covers(self, x: _Floats) -> npt.NDArray[np.bool_]:
        """Tell for which rows of `x` (n × features) at most MAX_OUTSIDE features lie outside the range."""
        outside = (x < self.low) | ((x > self.high) & ~_FREE_ABOVE)
        return np.asarray(outside.sum(axis=1) <= MAX_OUTSIDE)

    def with_(self, other: "Domain") -> "Domain":
        """Return the domain of a blend: its range holds both ranges; normal and deciles are these."""
        return Domain(np.minimum(self.low, other.low), np.maximum(self.high, other.high), self.normal, self.deciles)


def domain_of(x: _Floats, y: _Labels) -> Domain:
    """Describe training rows `x` (n × features, n > 0) with their labels `y`."""
    low, high = np.quantile(x, (_TAIL, 1 - _TAIL), axis=0)
    margin = _MARGIN * (high - low) + 1e-6
    calm = x[y == 0] if (y == 0).any() else x
    return Domain(low - margin, high + margin, np.median(calm, axis=0), np.quantile(x, _DECILES, axis=0))
