"""Logistic regression as plain arrays: the challenger of the trees, and all there is when evidence is thin."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
# A feature may pull no harder than this many standard deviations: deviances of an outage reach dozens.
CLIP_SD = 5.0


@dataclass(frozen=True, slots=True)
class Linear:
    """A weighted sum of standardised, clipped features. `center`, `scale` (> 0) and `weight` have one value each per
    feature; `intercept` is the log-odds of an endpoint at all centers.
    """

    center: _Floats
    scale: _Floats
    weight: _Floats
    intercept: float

    def standardised(self, x: _Floats) -> _Floats:
        """Return what the weights are applied to, n × features; a missing value counts as its center."""
        z = np.clip((x - self.center) / self.scale, -CLIP_SD, CLIP_SD)
        return np.asarray(np.nan_to_num(z, copy=False, nan=0.0), dtype=np.float64)

    def log_odds(self, x: _Floats) -> _Floats:
        """Return the raw log-odds of each row of `x` (n × features, float64)."""
        return np.asarray(self.standardised(x) @ self.weight + self.intercept, dtype=np.float64)
