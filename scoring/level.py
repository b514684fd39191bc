"""The plain level rule: trouble is foretold by how high failures, rate limits and latency stand right now.

It has nothing to learn but its calibration. The gate measures every model against it, and serves it where it wins.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from routing.counts import SLOW_RATIO
from scoring.degradation import FAILURE_SHARE
from scoring.features import NAMES

_Floats = npt.NDArray[np.float64]
_FAILURES, _LIMITED, _LATENCY = (
    NAMES.index(name) for name in ("failure_rate_15s", "limited_rate_60s", "latency_shift_15s")
)


@dataclass(frozen=True, slots=True)
class Level:
    """The highest of three figures, each as a multiple of the level at which an endpoint counts as degraded."""

    def log_odds(self, x: _Floats) -> _Floats:
        """Return the log of the highest multiple of each row of `x` (n × features, float64)."""
        shares = np.maximum(x[:, _FAILURES], x[:, _LIMITED]) / FAILURE_SHARE
        highest = np.maximum(np.log(np.maximum(shares, 1e-6)), x[:, _LATENCY] - np.log(SLOW_RATIO))
        return np.asarray(highest, dtype=np.float64)
