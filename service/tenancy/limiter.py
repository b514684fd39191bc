"""How many requests a process takes on at once: as many as do not slow each other down.

After Gradient2 of Netflix' concurrency-limits (https://github.com/Netflix/concurrency-limits): the limit times the
gradient of latency, usual over present, plus the square root of the limit as a queue that is allowed, smoothed. What is
different here, and why:

- One series per endpoint and kind (first token of a stream, whole reply), and only the least slowed counts. What slows
  every endpoint at once is our own doing or everybody's; what slows one is for failover to answer, not for throttling
  those that are well.
- A series is looked at by its first quartile, within a window against its own: answers differ in length by orders of
  magnitude, but a wait that all of them share moves the short ones too.
- The limit begins at its most, and comes down from the requests that were under way, not from where it stood, like a
  TCP sender from its flight size (RFC 5681, 3.1): a router that starts low turns away the first burst after each start.
- It comes down after three slow windows in a row, for one may be luck; and grows faster the longer none has been slow,
  also while nobody needs it: what was learnt of an overload is soon out of date.
- A limit that does not help is lifted: when half as many requests are no faster, the upstream has become slow, not
  crowded, and that is its normal now. (Gradient2 drifts there within minutes; Envoy's filter measures anew at a
  concurrency of three.)
"""

from dataclasses import dataclass
from math import exp, sqrt

_MOST_SAMPLES = 256
_SLOW_WINDOWS = 3
_WEIGHT_DOWN = 0.1


@dataclass(frozen=True, slots=True)
class LimiterPolicy:
    """How the limit moves. `tolerance`: how many times its usual latency is not slow yet. A window lasts at least
    `window_s` and, per series, `min_samples`; the usual latency follows a higher one in `drift_s`.
    """

    least: int = 64
    most: int = 4096
    tolerance: float = 1.5
    smoothing: float = 0.2
    window_s: float = 0.5
    min_samples: int = 32
    drift_s: float = 600.0


@dataclass(slots=True)
class _Descent:
    """A limit on its way down: how slow answers were at the worst, and with how many requests under way."""

    flight: int
    slowness: float


class _Series:
    __slots__ = ("samples", "usual_s")

    def __init__(self) -> None:
        self.samples: list[float] = []
        self.usual_s: float | None = None


class GradientLimiter:
    """See the module's docstring. Times are seconds on any steady clock. Memory: 256 samples for each series, of which
    there are two for each endpoint.
    """

    def __init__(self, policy: LimiterPolicy, now: float) -> None:
        self._policy = policy
        self._limit = float(policy.most)
        self._series: dict[tuple[str, bool], _Series] = {}
        self._opened = now
        self._flight = 0
        self._calm = 0
        self._slow = 0
        self._descent: _Descent | None = None

    @property
    def limit(self) -> int:
        """How many requests may be under way."""
        return int(self._limit)

    def observe(self, endpoint: str, latency_s: float, in_flight: int, now: float, *, streamed: bool) -> None:
        """An endpoint answered: `latency_s` to the first token of a stream, or to the end of a whole reply."""
        series = self._series.get((endpoint, streamed))
        if series is None:
            series = self._series[endpoint, streamed] = _Series()
        if len(series.samples) < _MOST_SAMPLES:
            series.samples.append(latency_s)
        self._flight = max(self._flight, in_flight)
        if now - self._opened >= self._policy.window_s:
            self._close_window(now)

    def _close_window(self, now: float) -> None:
        span_s, policy = now - self._opened, self._policy
        full = [series for series in self._series.values() if len(series.samples) >= policy.min_samples]
        if not full:
            return
        slowness = min([self._slowness(series, span_s) for series in full])
        self._move(slowness)
        if self._descent is not None and self._has_not_helped(self._descent, slowness):
            for series in full:
                series.usual_s = _first_quartile(series.samples)
            self._limit, self._descent = float(policy.most), None
        for series in full:
            series.samples = []
        self._opened, self._flight = now, 0

    def _slowness(self, series: _Series, span_s: float) -> float:
        """Return how many times its usual latency a series takes, and let the usual follow."""
        present_s = _first_quartile(series.samples)
        usual_s = series.usual_s
        if usual_s is None or usual_s <= 0:
            series.usual_s = present_s
            return 1.0
        weight = _WEIGHT_DOWN if present_s < usual_s else 1 - exp(-span_s / self._policy.drift_s)
        series.usual_s = usual_s + weight * (present_s - usual_s)
        return present_s / usual_s

    def _move(self, slowness: float) -> None:
        policy, flight = self._policy, self._flight
        if slowness <= policy.tolerance:
            self._calm, self._slow, self._descent = self._calm + 1, 0, None
            self._limit += policy.smoothing * sqrt(self._limit) * self._calm
        else:
            self._calm, self._slow = 0, self._slow + 1
            # So few are always let in: nothing is gained by forgetting how many more there may be.
            if self._slow < _SLOW_WINDOWS or flight <= policy.least:
                return
            if self._descent is None or slowness > self._descent.slowness:
                self._descent = _Descent(flight, slowness)
            base = min(self._limit, flight)
            wanted = base * max(0.5, policy.tolerance / slowness) + sqrt(base)
            self._limit = base + policy.smoothing * (wanted - base)
        self._limit = min(float(policy.most), max(float(policy.least), self._limit))

    def _has_not_helped(self, descent: _Descent, slowness: float) -> bool:
        return self._flight <= descent.flight / 2 and slowness >= 0.8 * descent.slowness


def _first_quartile(samples: list[float]) -> float:
    return sorted(samples)[len(samples) // 4]
