"""Boosted trees as plain arrays, walked by numpy.

The rule of this file: what scikit-learn trained is walked here exactly as scikit-learn walks it (a value goes left when
it is at most the threshold; a missing one goes where training sent missing values), so serving needs neither
scikit-learn nor pickle.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int32]
# Rows walked at a time: bounds the memory of rows × trees.
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Forest:
    """Boosted trees. All arrays are trees × nodes, padded; node 0 is a tree's root and a leaf leads to itself.

    `feature` is the column a node looks at, `threshold` the largest value that goes left, `missing_left` where a NaN
    goes, `value` a leaf's share of the log-odds (0 in inner nodes). `depth` is the longest way from a root to a leaf,
    `baseline` the log-odds before any tree.
    """

    feature: _Ints
    threshold: _Floats
    missing_left: npt.NDArray[np.bool_]
    left: _Ints
    right: _Ints
    value: _Floats
    depth: int
    baseline: float

    @property
    def trees(self) -> int:
        """How many trees there are."""
        return len(self.feature)

    def log_odds(self, x: _Floats) -> _Floats:
        """Return the raw log-odds of each row of `x` (n × features, float64; NaN means missing)."""
        if len(x) > _CHUNK:
            return np.concatenate([self.log_odds(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)])
        rows = np.arange(len(x))[:, None]
        trees, nodes = self.feature.shape
        first = np.arange(trees, dtype=np.int32) * np.int32(nodes)
        feature, threshold, missing = self.feature.ravel(), self.threshold.ravel(), self.missing_left.ravel()
        left, right = self.left.ravel(), self.right.ravel()
        any_missing = bool(np.isnan(x).any())
        at = np.broadcast_to(first, (len(x), trees)).copy()
        for _ in range(self.depth):
            seen = x[rows, feature[at]]
            goes_left = seen <= threshold[at]
            if any_missing:
                goes_left |= np.isnan(seen) & missing[at]
            at = first + np.where(goes_left, left[at], right[at])
        total: _Floats = self.baseline + self.value.ravel()[at].sum(axis=1)
        return total
