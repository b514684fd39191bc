"""Boosted trees as plain arrays, walked by numpy.

The rule of this file: what scikit-learn trained is walked here exactly as scikit-learn walks it (a value goes left when
it is at most the threshold; a missing one goes where training sent missing values), so serving needs neither
scikit-learn nor pickle.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int32]
# Rows walked at a time: what is touched of them stays in the processor's cache.
_CHUNK = 256


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
    # The same nodes in one row, numbered through, and where each leads to: left at twice its number, right after it.
    _flat_feature: npt.NDArray[np.intp] = field(init=False, repr=False, compare=False)
    _children: npt.NDArray[np.intp] = field(init=False, repr=False, compare=False)
    _roots: npt.NDArray[np.intp] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        trees, nodes = self.feature.shape
        roots = np.arange(trees, dtype=np.intp) * nodes
        children = np.stack([self.left, self.right], axis=2) + roots[:, None, None]
        object.__setattr__(self, "_flat_feature", self.feature.ravel().astype(np.intp))
        object.__setattr__(self, "_children", children.ravel().astype(np.intp))
        object.__setattr__(self, "_roots", roots)

    @property
    def trees(self) -> int:
        """How many trees there are."""
        return len(self.feature)

    def log_odds(self, x: _Floats) -> _Floats:
        """Return the raw log-odds of each row of `x` (n × features, float64; NaN means missing)."""
        if len(x) > _CHUNK:
            return np.concatenate([self.log_odds(x[i : i + _CHUNK]) for i in range(0, len(x), _CHUNK)])
        values = np.ascontiguousarray(x).ravel()
        row = (np.arange(len(x), dtype=np.intp) * x.shape[1])[:, None]
        threshold = self.threshold.ravel()
        missing_right = ~self.missing_left.ravel() if np.isnan(values).any() else None
        at = np.broadcast_to(self._roots, (len(x), self.trees))
        for _ in range(self.depth):
            seen = values.take(row + self._flat_feature.take(at))
            goes_right = seen > threshold.take(at)
            if missing_right is not None:
                goes_right |= np.isnan(seen) & missing_right.take(at)
            at = self._children.take(2 * at + goes_right)
        total: _Floats = self.baseline + self.value.ravel().take(at).sum(axis=1)
        return total
