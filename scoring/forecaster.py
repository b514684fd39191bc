"""The forecaster: boosted trees and a calibration as plain arrays, evaluated by numpy.

The rule of this file: what scikit-learn trained is walked here exactly as scikit-learn walks it (a value goes left when
it is at most the threshold; a missing one goes where training sent missing values), so serving needs neither
scikit-learn nor pickle.
"""

from dataclasses import dataclass, fields
from typing import Any

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

    def blended(self, other: "Forest", weight: float) -> "Forest":
        """Return the forest whose log-odds are `weight` times these plus (1 - weight) times those of `other`.

        A sum of trees with scaled leaves is a forest again, so a blend costs nothing new to serve.
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"weight = {weight!r}: expected a share in [0, 1]")
        width = max(self.feature.shape[1], other.feature.shape[1])
        mine, theirs = self._padded(width), other._padded(width)
        stacked = {name: np.concatenate([array, theirs[name]]) for name, array in mine.items()}
        stacked["value"] *= np.repeat([weight, 1 - weight], [self.trees, other.trees])[:, None]
        return Forest(
            **stacked,
            depth=max(self.depth, other.depth),
            baseline=weight * self.baseline + (1 - weight) * other.baseline,
        )

    def _padded(self, width: int) -> dict[str, npt.NDArray[Any]]:
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("depth", "baseline")}
        return {name: np.pad(array, ((0, 0), (0, width - array.shape[1]))) for name, array in arrays.items()}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling: risk = 1 / (1 + exp(-(slope × log-odds + intercept))), slope > 0.

    Platt, "Probabilistic outputs for support vector machines", 1999. Two parameters keep the order of the risks and
    need little evidence; on simulated worlds isotonic steps gained nothing and made the threshold jumpy.
    """

    slope: float = 1.0
    intercept: float = 0.0

    def risk(self, log_odds: _Floats) -> _Floats:
        """Return calibrated probabilities in (0, 1)."""
        scaled = np.clip(self.slope * log_odds + self.intercept, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(-scaled)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Forecaster:
    """From features to the calibrated probability of being degraded within the horizon."""

    forest: Forest
    calibration: Calibration

    def risks(self, x: _Floats) -> _Floats:
        """Return one probability per row of `x` (n × features)."""
        return self.calibration.risk(self.forest.log_odds(x)) if len(x) else np.empty(0)
