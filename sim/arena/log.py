"""What a run leaves behind: compact arrays by request, by probe and by change of a warning.

The rule of this file: enough to compute every metric of the scorecard, and nothing that grows faster than the requests.
"""

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Log:
    """One run of n requests.

    Attributes:
        endpoints: how many there are; index 0 is the preferred one.
        duration_s: the time in which requests arrived.
        arrival_s: float64 n, ascending. first: int64 n, the endpoint of the first attempt, -1 if it was refused.
        attempts: int64 n, those beside another included. failed: bool n, the caller got no whole answer.
        hedged: bool n, a second attempt was started beside one that waited.
        ttft_s: float64 n, from arrival to the first token over all attempts, NaN if none came.
        cost_usd: float64 n, over all attempts.
        probe_s, probe_endpoint, probe_cost_usd: one per probe.
        warned_s, warned_endpoint, warned_on: one per change of the policy's warnings.
    """

    endpoints: int
    duration_s: float
    arrival_s: _Floats
    first: _Ints
    attempts: _Ints
    failed: _Bools
    hedged: _Bools
    ttft_s: _Floats
    cost_usd: _Floats
    probe_s: _Floats
    probe_endpoint: _Ints
    probe_cost_usd: _Floats
    warned_s: _Floats
    warned_endpoint: _Ints
    warned_on: _Bools


class Recorder:
    """Collects a `Log` while a run goes on. Indices are request numbers."""

    __slots__ = (
        "attempts", "cost_usd", "failed", "first", "hedged", "probe_cost_usd", "probe_endpoint", "probe_s", "ttft_s",
        "warned_endpoint", "warned_on", "warned_s",
    )  # fmt: skip

    def __init__(self, requests: int) -> None:
        self.first = array("q", [-1]) * requests
        self.attempts = array("q", [0]) * requests
        self.failed = array("b", [0]) * requests
        self.hedged = array("b", [0]) * requests
        self.ttft_s = array("d", [np.nan]) * requests
        self.cost_usd = array("d", [0.0]) * requests
        self.probe_s = array("d")
        self.probe_endpoint = array("q")
        self.probe_cost_usd = array("d")
        self.warned_s = array("d")
        self.warned_endpoint = array("q")
        self.warned_on = array("b")

    def log(self, endpoints: int, duration_s: float, arrival_s: _Floats) -> Log:
        """Return what was recorded."""
        return Log(
            endpoints=endpoints,
            duration_s=duration_s,
            arrival_s=arrival_s,
            first=np.array(self.first, dtype=np.int64),
            attempts=np.array(self.attempts, dtype=np.int64),
            failed=np.array(self.failed, dtype=np.bool_),
            hedged=np.array(self.hedged, dtype=np.bool_),
            ttft_s=np.array(self.ttft_s, dtype=np.float64),
            cost_usd=np.array(self.cost_usd, dtype=np.float64),
            probe_s=np.array(self.probe_s, dtype=np.float64),
            probe_endpoint=np.array(self.probe_endpoint, dtype=np.int64),
            probe_cost_usd=np.array(self.probe_cost_usd, dtype=np.float64),
            warned_s=np.array(self.warned_s, dtype=np.float64),
            warned_endpoint=np.array(self.warned_endpoint, dtype=np.int64),
            warned_on=np.array(self.warned_on, dtype=np.bool_),
        )
