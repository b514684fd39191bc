"""What windows say at one moment: counts per span, compared with each endpoint's own baseline.

The rule of this file: everything is relative to the endpoint itself. Raw milliseconds and raw rates tell endpoints
apart, not good moments from bad ones. Every figure is finite for every window, the empty one included.

All endpoints are read at once. Arrays end in the axis of endpoints (n); those over spans are spans × n, in the order of
`SPANS_S`. What one endpoint's figures are never depends on who else is read, to the last bit: training fills in with
other company what serving computed.
"""

from collections.abc import Sequence
from functools import cached_property
from math import log, sqrt

import numpy as np
import numpy.typing as npt

from routing.counts import FAILURES, LATENCY, SLOW_RATIO, Counter
from routing.window import Window
from scoring.degradation import ENOUGH, RECENT_SPANS_S, enough_timed, fails, failure_excess, slow_from

_Floats = npt.NDArray[np.float64]

SPANS_S = (15, 60, 300)
_RECENT_S, *_LONGER_S = RECENT_SPANS_S
# A short baseline has seen too little to be believed: it is averaged with this many attempts of a usual endpoint.
_PRIOR_RATE = 0.005
_PRIOR_ATTEMPTS = 40.0
_MIN_SPREAD, _MAX_SPREAD = 0.1, 3.0
_OVERDUE_RATIO = 3.0
_EXPECTED_OVERDUE = 0.5
# An endpoint without recent latencies is as far from slow as one that answers at once.
_FAR = -3.0
_SHORT, _MINUTE, _LONG = range(len(SPANS_S))


def signed_deviance(count: _Floats, expected: _Floats) -> _Floats:
    """Return the signed root of the Poisson deviance of each `count` (>= 0) from `expected` (> 0).

    About standard normal when the count is as expected, positive above it (McCullagh and Nelder, "Generalized Linear
    Models", section 2.4).
    """
    half = np.maximum(0.0, count * np.log(np.maximum(count, 1e-300) / expected) - (count - expected))
    return np.asarray(np.copysign(np.sqrt(2 * half), count - expected))


def upper_tail(z: _Floats) -> _Floats:
    """Return the chance that a standard normal value lies above `z`, within 1e-7 (Abramowitz and Stegun, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * np.abs(z))
    series = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = _density(z) * series
    return np.asarray(np.where(z >= 0, tail, 1 - tail))


def _density(z: _Floats) -> _Floats:
    return np.asarray(np.exp(-0.5 * np.minimum(z * z, 1400.0)) / sqrt(2 * np.pi))


class Counts:
    """Counts of spans or of baselines, `values` is counters × … × n, and what follows from them."""

    def __init__(self, values: _Floats) -> None:
        self.values = values

    def __getitem__(self, counter: Counter) -> _Floats:
        return np.asarray(self.values[counter])

    @cached_property
    def failures(self) -> _Floats:
        """Attempts that gave their caller no usable answer by the endpoint's fault."""
        return self.total(FAILURES)

    @cached_property
    def judged(self) -> _Floats:
        """Successes and failures."""
        return self[Counter.OK] + self.failures

    @cached_property
    def answered(self) -> _Floats:
        """Attempts that say something about the endpoint or its quota."""
        return self.judged + self[Counter.RATE_LIMITED]

    @cached_property
    def bad(self) -> _Floats:
        """Failures and rate limits."""
        return self.failures + self[Counter.RATE_LIMITED]

    @cached_property
    def latencies(self) -> _Floats:
        """Latency values of both channels."""
        return self[Counter.TTFT_N] + self[Counter.REPLY_N]

    def replaced(self, places: npt.NDArray[np.intp], values: _Floats) -> "Counts":
        """Return the same with other counts (counters × len(places)) of the endpoints at `places`."""
        changed = self.values.copy()
        changed[:, places] = values
        return Counts(changed)

    def total(self, counters: Sequence[Counter]) -> _Floats:
        """Return the sum of some counters."""
        found = self[counters[0]]
        for counter in counters[1:]:
            found = found + self[counter]
        return found

    def mean_log(self, first: Counter) -> _Floats:
        """Mean logarithm of the channel whose `_N` counter is `first`; 0 without values."""
        n = self.values[first]
        return np.asarray(self.values[first + 1] / np.where(n > 0, n, 1.0))

    def spread(self, first: Counter) -> _Floats:
        """Standard deviation of the logarithms of a channel; 0 with fewer than two values."""
        mean = self.mean_log(first)
        variance = self.values[first + 2] / np.maximum(self.values[first], 1.0) - mean * mean
        return np.asarray(np.where(self.values[first] >= 2, np.sqrt(np.maximum(variance, 0.0)), 0.0))


def _rows(windows: Sequence[Window], now: float, spans_s: Sequence[int]) -> _Floats:
    """Return what `Window.columns` says of each: counters × rows × n."""
    raw = np.frombuffer(b"".join([window.columns(now, spans_s) for window in windows]))
    return np.ascontiguousarray(raw.reshape(len(windows), len(spans_s) + 3, len(Counter)).transpose(2, 1, 0))


class Reading:
    """The windows of n endpoints at `now` (seconds of the windows' clock).

    `span`: counts over each of SPANS_S; `recent` and `timed`: those over the time in which attempts, or latencies, tell
    whether an endpoint is degraded; `usual`: those of the baselines; `earlier`: those of the last hour without the
    longest span.
    """

    def __init__(self, windows: Sequence[Window], now: float) -> None:
        self._windows = windows
        self._now = now
        rows = _rows(windows, now, (*SPANS_S, _RECENT_S))
        self.span = Counts(rows[:, :1] - rows[:, 1:-3])
        self.recent = self.timed = recent = Counts(rows[:, 0] - rows[:, -3])
        few = np.flatnonzero(np.minimum(recent.answered, recent.latencies) < ENOUGH)
        if len(few):
            longer = _rows([windows[int(i)] for i in few], now, _LONGER_S)
            spans = Counts(np.concatenate([recent.values[:, None, few], longer[:, :1] - longer[:, 1:-2]], axis=1))
            self.recent = recent.replaced(few, _latest(spans, spans.answered))
            self.timed = recent.replaced(few, _latest(spans, spans.latencies))
        self.earlier = Counts(rows[:, _LONG + 1] - rows[:, -2])
        self.usual = Counts(rows[:, -1])
        # Per channel: usual mean and spread of the logarithms, by those who have values of it.
        self._means = [self.usual.mean_log(first) for first in LATENCY]
        self._spreads = [self.usual.spread(first) for first in LATENCY]

    def deviance(self, *counters: Counter) -> _Floats:
        """Signed deviance of the sum of `counters` over each span from what the baseline lets expect."""
        rate = (self.usual.total(counters) + _PRIOR_RATE * _PRIOR_ATTEMPTS) / (self.usual.answered + _PRIOR_ATTEMPTS)
        return signed_deviance(self.span.total(counters), np.maximum(rate * self.span.answered, 1e-6))

    @cached_property
    def failure_deviance(self) -> _Floats:
        """Failures of each span against the baseline's rate."""
        return self.deviance(*FAILURES)

    @cached_property
    def limited_deviance(self) -> _Floats:
        """Rate limits of each span against the baseline's rate."""
        return self.deviance(Counter.RATE_LIMITED)

    @cached_property
    def timeout_deviance(self) -> _Floats:
        """Timeouts of each span against the baseline's rate."""
        return self.deviance(Counter.TIMEOUT)

    @cached_property
    def failure_rate(self) -> _Floats:
        """Failures of each span as a share of judged attempts, drawn towards the prior, in [0, 1]."""
        return (self.span.failures + _PRIOR_RATE * 10) / (self.span.judged + 10)

    @cached_property
    def failure_excess(self) -> _Floats:
        """How near degraded by failures: standard deviations of recent failures and rate limits beyond the usual."""
        return failure_excess(self.recent.bad, self.recent.answered, self.usual.bad, self.usual.answered)

    @cached_property
    def bad_share(self) -> _Floats:
        """Recent failures and rate limits as a share of answered attempts and five more, in [0, 1]."""
        return self.recent.bad / (self.recent.answered + 5)

    @cached_property
    def slow_distance(self) -> _Floats:
        """How near degraded by latency: the recent mean log ratio to the baseline, less that from which on it is slow;
        far below without evidence.
        """
        weight, shift = self._weight_and_shift(self.timed)
        has_values = [(self.usual[first] > 0) & (self.timed[first] > 0) for first in LATENCY]
        spread = np.where(has_values, self._spreads, 0.0).max(axis=0)
        return np.asarray(np.where(weight > 0, shift - slow_from(spread), _FAR))

    @property
    def degraded(self) -> npt.NDArray[np.bool_]:
        """Where the rule of the labels calls an endpoint degraded, as near as counts, means and spreads tell."""
        fail = fails(self.recent.bad, self.recent.answered, self.usual.bad, self.usual.answered)
        return np.asarray(fail | (enough_timed(self.timed.latencies) & (self.slow_distance >= 0)))

    @cached_property
    def limited_rate(self) -> _Floats:
        """Rate limits of each span as a share of answered attempts, drawn towards the prior, in [0, 1]."""
        return (self.span[Counter.RATE_LIMITED] + _PRIOR_RATE * 10) / (self.span.answered + 10)

    @cached_property
    def latency_shift(self) -> _Floats:
        """Mean log ratio of each span's latency to the baseline's, over both channels; 0 without evidence."""
        return self._shift_and_error[0]

    @cached_property
    def latency_z(self) -> _Floats:
        """The latency shift in its own standard errors."""
        shift, error = self._shift_and_error
        return shift / error

    @cached_property
    def _shift_and_error(self) -> tuple[_Floats, _Floats]:
        weight, shift = self._weight_and_shift(self.span)
        variance = np.zeros(weight.shape)
        for first, spread in zip(LATENCY, self._spreads, strict=True):
            known = self.usual[first]
            n = np.where(known > 0, self.span[first], 0.0)
            floored = np.maximum(_MIN_SPREAD, spread)
            variance += n * (1 + n / np.maximum(known, 1.0)) * (floored * floored)
        some = weight > 0
        return shift, np.where(some, np.sqrt(variance) / np.where(some, weight, 1.0), 1.0)

    def _weight_and_shift(self, counts: Counts) -> tuple[_Floats, _Floats]:
        """How many latencies of `counts` have a baseline, and their mean log ratio to it; 0 without any."""
        weight, shift = np.zeros(counts.latencies.shape), np.zeros(counts.latencies.shape)
        for first, mean in zip(LATENCY, self._means, strict=True):
            n = np.where(self.usual[first] > 0, counts[first], 0.0)
            weight += n
            shift += n * (counts.mean_log(first) - mean)
        some = weight > 0
        return weight, np.where(some, shift / np.where(some, weight, 1.0), 0.0)

    @cached_property
    def spread_ratio(self) -> _Floats:
        """Log ratio of each span's latency spread to the baseline's, over both channels; 0 without evidence."""
        shape = self.span.latencies.shape
        weight, ratio = np.zeros(shape), np.zeros(shape)
        for first, spread in zip(LATENCY, self._spreads, strict=True):
            n = self.span[first]
            n = np.where((n >= 5) & (self.usual[first] >= 5), n, 0.0)
            weight += n
            ratio += n * np.log(np.maximum(0.01, self.span.spread(first)) / np.maximum(_MIN_SPREAD, spread))
        return np.asarray(ratio / np.maximum(weight, 1.0))

    @cached_property
    def slow_share(self) -> _Floats:
        """Share of each span's latencies above 2.5 times the baseline, less the endpoint's usual share, in [-1, 1].

        Usual is what the baseline counted or what its spread lets expect of a log-normal latency, whichever is more: a
        young baseline has counted too few.
        """
        slow = self.span[Counter.SLOW]
        samples = self.span.latencies
        usual = np.maximum(self.usual[Counter.SLOW] / np.maximum(self.usual.latencies, 1.0), self._slow_tail)
        return np.asarray((slow + 2 * usual) / (samples + 2) - usual)

    @cached_property
    def _slow_tail(self) -> _Floats:
        total = np.zeros(len(self._windows))
        for first, spread in zip(LATENCY, self._spreads, strict=True):
            total += self.usual[first] * upper_tail(log(SLOW_RATIO) / np.maximum(_MIN_SPREAD, spread))
        return np.asarray(total / np.maximum(self.usual.latencies, 1.0))

    @cached_property
    def token_shift(self) -> _Floats:
        """Log ratio of each span's seconds per output token to the baseline's; 0 without evidence."""
        known = np.minimum(self.span[Counter.OUTPUT_TOKENS], self.usual[Counter.OUTPUT_TOKENS]) >= 1
        pace = np.log(np.maximum(_pace(self.span), 1e-6)) - np.log(np.maximum(_pace(self.usual), 1e-6))
        return np.asarray(np.where(known, pace, 0.0))

    @cached_property
    def usual_s(self) -> _Floats:
        """One standard deviation above the usual latency of the slower channel, in seconds; 0 without a baseline."""
        slowest = np.zeros(len(self._windows))
        for first, mean, spread in zip(LATENCY, self._means, self._spreads, strict=True):
            has_share = self.usual[first] >= np.maximum(1.0, 0.05 * self.usual.latencies)
            slowest = np.maximum(slowest, np.where(has_share, np.exp(mean + spread), 0.0))
        return slowest

    @cached_property
    def in_flight_excess(self) -> _Floats:
        """Log ratio of attempts in flight to what Little's law lets expect: arrivals times the usual time in service.

        0 without a baseline.
        """
        in_flight = np.array([window.in_flight for window in self._windows], dtype=np.float64)
        held_s = self.usual_s + self.usual[Counter.GENERATION_S] / np.maximum(1.0, self.usual[Counter.OK])
        expected = self.span[Counter.STARTED][_SHORT] / SPANS_S[_SHORT] * held_s
        return np.asarray(np.where(self.usual_s > 0, np.log((in_flight + 1) / (expected + 1)), 0.0))

    @cached_property
    def waiting_ratio(self) -> _Floats:
        """Log of 1 plus the oldest wait for a first byte over the longest that usually is in flight; 0 without a
        baseline.
        """
        endpoint, waited_s = self._waits
        oldest_s = np.zeros(len(self._windows))
        np.maximum.at(oldest_s, endpoint, waited_s)
        longest_s = np.zeros(len(self._windows))
        for mean, spread, per_s in self._latency_in_flight:
            # About where the largest of so many log-normal values lies.
            deviations = np.maximum(1.0, np.sqrt(2 * np.log1p(per_s * np.exp(mean + spread))))
            longest_s = np.maximum(longest_s, np.where(per_s > 0, np.exp(mean + spread * deviations), 0.0))
        longest_s = np.maximum(longest_s, self.usual_s)
        has_usual = self.usual_s > 0
        return np.asarray(np.log1p(np.where(has_usual, oldest_s / np.where(has_usual, longest_s, 1.0), 0.0)))

    @cached_property
    def overdue(self) -> _Floats:
        """Signed deviance of how many attempts in flight have waited three times the usual latency from how many the
        arrivals and the latency's spread let expect; 0 without a baseline.
        """
        endpoint, waited_s = self._waits
        has_usual = self.usual_s > 0
        limit_s = np.where(has_usual, _OVERDUE_RATIO * self.usual_s, 1.0)
        count = np.bincount(endpoint[waited_s > limit_s[endpoint]], minlength=len(self._windows))
        expected = np.zeros(len(self._windows))
        for mean, spread, per_s in self._latency_in_flight:
            # The mean time that a log-normal latency spends beyond the limit: times the arrivals it is, by Little's
            # law, how many wait so long at a time.
            z = (np.log(limit_s) - mean) / spread
            whole_s = np.exp(mean + 0.5 * spread * spread)
            beyond_s = whole_s * upper_tail(z - spread) - limit_s * upper_tail(z)
            expected += per_s * np.maximum(0.0, beyond_s)
        # Where hardly one is expected, one is no sign yet.
        deviance = signed_deviance(count.astype(np.float64), np.maximum(expected, _EXPECTED_OVERDUE))
        return np.asarray(np.where(has_usual, deviance, 0.0))

    @cached_property
    def _waits(self) -> tuple[npt.NDArray[np.int64], _Floats]:
        """Every attempt that waits for its first byte: whose it is, and for how long. Streams and whole replies alike:
        history does not know of every failed attempt which it was.
        """
        now, counts, since = self._now, [], list[float]()
        for window in self._windows:
            before = len(since)
            since += window.waiting(streamed=True)
            since += window.waiting(streamed=False)
            counts.append(len(since) - before)
        return np.repeat(np.arange(len(counts)), counts), np.maximum(0.0, now - np.array(since, dtype=np.float64))

    @cached_property
    def _latency_in_flight(self) -> list[tuple[_Floats, _Floats, _Floats]]:
        """Per channel: mean and spread of the logarithm of the usual latency, and the arrivals per second."""
        arrivals, total = self.span[Counter.STARTED][_MINUTE], np.maximum(self.usual.latencies, 1.0) * SPANS_S[_MINUTE]
        return [
            (mean, np.clip(spread, _MIN_SPREAD, _MAX_SPREAD), arrivals * self.usual[first] / total)
            for first, mean, spread in zip(LATENCY, self._means, self._spreads, strict=True)
        ]

    @cached_property
    def traffic_ratio(self) -> _Floats:
        """Log ratio of the arrival rate of the last 15 s to that of the last 300 s, each drawn towards 0."""
        started = self.span[Counter.STARTED]
        return np.asarray(np.log((started[_SHORT] + 1) / (started[_LONG] / 20 + 1)))

    @cached_property
    def earlier_failure_rate(self) -> _Floats:
        """Failures and rate limits of the last hour, without the last 300 s, as a share of answered attempts."""
        return np.asarray(np.maximum(0.0, self.earlier.bad) / (np.maximum(0.0, self.earlier.answered) + 20))

    @cached_property
    def consecutive_failures(self) -> _Floats:
        """Log of 1 plus the failures in a row."""
        return np.log1p(np.array([window.consecutive_failures for window in self._windows], dtype=np.float64))

    @property
    def in_trouble(self) -> npt.NDArray[np.bool_]:
        """Tell where the last minute alone shows trouble: what its peers should know of it."""
        bad, answered = self.span.bad[_MINUTE], self.span.answered[_MINUTE]
        slow = (self.span.latencies[_MINUTE] >= 5) & (self.latency_shift[_MINUTE] >= log(2.0))
        return np.asarray(((bad >= 3) & (bad >= 0.1 * answered)) | slow)


def _latest(spans: Counts, evidence: _Floats) -> _Floats:
    """Return, for each endpoint, the counts of the shortest of `spans` (counters × spans × n) if its `evidence`
    (spans × n) is ENOUGH, else of about its last ENOUGH: from each longer span the part of what it adds that is
    missing. The whole of a longer span would bring back what was over before the last ENOUGH began.
    """
    counts = spans.values
    found, has = counts[:, 0], evidence[0]
    for i in range(1, len(evidence)):
        added = evidence[i] - evidence[i - 1]
        part = np.clip((ENOUGH - has) / np.where(added > 0, added, 1.0), 0.0, 1.0)
        found = found + part * (counts[:, i] - counts[:, i - 1])
        has = has + part * added
    return found


def _pace(counts: Counts) -> _Floats:
    """Seconds per output token."""
    return np.asarray(counts[Counter.GENERATION_S] / np.maximum(counts[Counter.OUTPUT_TOKENS], 1.0))
