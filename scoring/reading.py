"""What one window says at one moment: counts per span, compared with the endpoint's own baseline.

The rule of this file: everything is relative to the endpoint itself. Raw milliseconds and raw rates tell endpoints
apart, not good moments from bad ones. Every figure is finite for every window, the empty one included.
"""

from math import exp, log, log1p, sqrt

from routing.counts import Counter, Sums
from routing.window import Window

SPANS_S = (15, 60, 300)
# A short baseline has seen too little to be believed: it is averaged with this many attempts of a usual endpoint.
_PRIOR_RATE = 0.005
_PRIOR_ATTEMPTS = 40.0
_MIN_SPREAD = 0.1
_CHANNELS = (Counter.TTFT_N, Counter.REPLY_N)
_OVERDUE_RATIO = 3.0


def signed_deviance(count: float, expected: float) -> float:
    """Return the signed root of the Poisson deviance of `count` (>= 0) from `expected` (> 0).

    About standard normal when the count is as expected, positive above it (McCullagh and Nelder, "Generalized Linear
    Models", section 2.4).
    """
    if count <= 0:
        return -sqrt(2 * expected)
    half = max(0.0, count * log(count / expected) - (count - expected))
    return sqrt(2 * half) if count >= expected else -sqrt(2 * half)


class Reading:
    """One endpoint's window at `now` (seconds of the window's clock), with each span summed once."""

    __slots__ = ("baseline", "hour", "now", "span", "usual_s", "window")

    def __init__(self, window: Window, now: float) -> None:
        self.window = window
        self.now = now
        self.baseline = window.baseline(now)
        self.span: dict[int, Sums] = {span_s: window.sums(now, span_s) for span_s in SPANS_S}
        self.hour = window.hour(now)
        self.usual_s = self._usual_s()

    def deviance(self, span_s: int, *counters: Counter) -> float:
        """Signed deviance of the sum of `counters` over a span from what the baseline lets expect."""
        usual = self.baseline
        seen = sum(usual[counter] for counter in counters)
        rate = (seen + _PRIOR_RATE * _PRIOR_ATTEMPTS) / (_answered(usual) + _PRIOR_ATTEMPTS)
        current = self.span[span_s]
        return signed_deviance(sum(current[counter] for counter in counters), max(rate * _answered(current), 1e-6))

    def answered(self, span_s: int) -> float:
        """Attempts of a span that say something about the endpoint or its quota."""
        return _answered(self.span[span_s])

    def failure_rate(self, span_s: int) -> float:
        """Failures over a span as a share of judged attempts, drawn towards the prior, in [0, 1]."""
        current = self.span[span_s]
        return (current.failures + _PRIOR_RATE * 10) / (current.judged + 10)

    def limited_rate(self, span_s: int) -> float:
        """Rate limits over a span as a share of answered attempts, drawn towards the prior, in [0, 1]."""
        current = self.span[span_s]
        return (current[Counter.RATE_LIMITED] + _PRIOR_RATE * 10) / (_answered(current) + 10)

    def latency_shift(self, span_s: int) -> float:
        """Mean log ratio of the span's latency to the baseline's, over both channels; 0 without evidence."""
        return self._shift(span_s)[0]

    def latency_z(self, span_s: int) -> float:
        """The latency shift in its own standard errors."""
        shift, variance = self._shift(span_s)
        return shift / sqrt(variance)

    def _shift(self, span_s: int) -> tuple[float, float]:
        current, usual = self.span[span_s], self.baseline
        weight = shift = variance = 0.0
        for first in _CHANNELS:
            n, known = current[first], usual[first]
            if n and known:
                spread = max(_MIN_SPREAD, usual.spread(first))
                weight += n
                shift += n * (current.mean_log(first) - usual.mean_log(first))
                variance += n * n * spread * spread * (1 / n + 1 / known)
        return (shift / weight, variance / (weight * weight)) if weight else (0.0, 1.0)

    def spread_ratio(self, span_s: int) -> float:
        """Log ratio of the span's latency spread to the baseline's, over both channels; 0 without evidence."""
        current, usual = self.span[span_s], self.baseline
        weight = ratio = 0.0
        for first in _CHANNELS:
            n = current[first]
            if n >= 5 and usual[first] >= 5:
                weight += n
                ratio += n * log(max(0.01, current.spread(first)) / max(_MIN_SPREAD, usual.spread(first)))
        return ratio / weight if weight else 0.0

    def slow_share(self, span_s: int) -> float:
        """Share of the span's latencies above 2.5 times the baseline, drawn towards 0, in [0, 1]."""
        current = self.span[span_s]
        return current[Counter.SLOW] / (current.latency_samples + 2)

    def token_shift(self, span_s: int) -> float:
        """Log ratio of the span's seconds per output token to the baseline's; 0 without evidence."""
        current, usual = self.span[span_s], self.baseline
        if min(current[Counter.OUTPUT_TOKENS], usual[Counter.OUTPUT_TOKENS]) < 1:
            return 0.0
        pace = current[Counter.GENERATION_S] / current[Counter.OUTPUT_TOKENS]
        usual_pace = usual[Counter.GENERATION_S] / usual[Counter.OUTPUT_TOKENS]
        return log(max(pace, 1e-6) / max(usual_pace, 1e-6))

    def in_flight_excess(self) -> float:
        """Log ratio of attempts in flight to what Little's law lets expect: arrivals times the usual time in service.

        0 without a baseline.
        """
        usual = self.baseline
        if not self.usual_s:
            return 0.0
        held_s = self.usual_s + usual[Counter.GENERATION_S] / max(1.0, usual[Counter.OK])
        return log((self.window.in_flight + 1) / (self.span[15][Counter.STARTED] / 15 * held_s + 1))

    def waiting_ratio(self) -> float:
        """Log of 1 plus the oldest wait for a first byte over the usual latency; 0 without a usual one."""
        return log1p(self.window.oldest_waiting_s(self.now) / self.usual_s) if self.usual_s else 0.0

    def overdue(self) -> float:
        """Log of 1 plus how many attempts in flight have waited three times the usual latency."""
        return log1p(self.window.hanging(self.now, _OVERDUE_RATIO * self.usual_s)) if self.usual_s else 0.0

    def traffic_ratio(self) -> float:
        """Log ratio of the arrival rate of the last 15 s to that of the last 300 s, each drawn towards 0."""
        return log((self.span[15][Counter.STARTED] + 1) / (self.span[300][Counter.STARTED] / 20 + 1))

    def earlier_failure_rate(self) -> float:
        """Failures and rate limits of the last hour, without the last 300 s, as a share of answered attempts."""
        bad = _bad(self.hour) - _bad(self.span[300])
        return max(0.0, bad) / (max(0.0, _answered(self.hour) - _answered(self.span[300])) + 20)

    @property
    def in_trouble(self) -> bool:
        """Tell whether the last minute alone shows trouble: what its peers should know of it."""
        current = self.span[60]
        failing = _bad(current) >= 3 and _bad(current) >= 0.1 * _answered(current)
        return failing or (current.latency_samples >= 5 and self.latency_shift(60) >= log(2.0))

    def _usual_s(self) -> float:
        """One standard deviation above the usual latency of the slower channel, in seconds; 0 without a baseline."""
        usual, slowest = self.baseline, 0.0
        for first in _CHANNELS:
            if usual[first] >= max(1.0, 0.05 * usual.latency_samples):
                slowest = max(slowest, exp(usual.mean_log(first) + usual.spread(first)))
        return slowest


def _answered(sums: Sums) -> float:
    return sums.judged + sums[Counter.RATE_LIMITED]


def _bad(sums: Sums) -> float:
    return sums.failures + sums[Counter.RATE_LIMITED]
