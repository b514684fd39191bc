"""One endpoint's recent past in bounded memory: any window up to an hour, O(1) per observation and per read.

Counters are kept as running totals. A ring holds the totals as they stood at the end of each of the last 300 seconds,
a second ring those at the end of each of the last 60 minutes; the sum over a window is then one subtraction. Reads
never mutate. An observation older than the newest one counts in the newest second, so that batches of several writers
may interleave.
"""

from array import array
from collections.abc import Sequence
from enum import IntEnum
from math import exp, log, sqrt

from routing.outcomes import TRAITS, Outcome, Signal
from routing.sketch import QuantileSketch

SECONDS = 300
MINUTES = 60
_MIN_BASELINE = 20


class Counter(IntEnum):
    """What is counted. Latency is kept in two channels, because a whole reply takes longer than a stream's first
    byte.
    """

    STARTED = 0
    OK = 1
    SERVER_ERROR = 2
    TIMEOUT = 3
    CONNECT_ERROR = 4
    RATE_LIMITED = 5
    BROKEN = 6
    NEUTRAL = 7
    TTFT_N = 8
    TTFT_LOG = 9
    TTFT_LOG_SQ = 10
    REPLY_N = 11
    REPLY_LOG = 12
    REPLY_LOG_SQ = 13
    SLOW = 14
    OUTPUT_TOKENS = 15
    GENERATION_S = 16


_WIDTH = len(Counter)
_ROW_BYTES = 8 * _WIDTH

COUNTER_OF: dict[Outcome, Counter] = {
    Outcome.OK: Counter.OK,
    Outcome.SERVER_ERROR: Counter.SERVER_ERROR,
    Outcome.TIMEOUT: Counter.TIMEOUT,
    Outcome.CONNECT_ERROR: Counter.CONNECT_ERROR,
    Outcome.RATE_LIMITED: Counter.RATE_LIMITED,
    Outcome.STALLED: Counter.BROKEN,
    Outcome.TRUNCATED: Counter.BROKEN,
    Outcome.MALFORMED: Counter.BROKEN,
    Outcome.AUTH_ERROR: Counter.NEUTRAL,
    Outcome.CLIENT_ERROR: Counter.NEUTRAL,
    Outcome.CANCELLED: Counter.NEUTRAL,
}


class _Ring:
    """Running totals as they stood at the end of each of the last `length` periods."""

    __slots__ = ("_length", "_rows", "newest")

    def __init__(self, length: int) -> None:
        self._length = length
        self._rows = array("d", bytes(_ROW_BYTES * length))
        self.newest = 0

    def advance(self, period: int, totals: "array[float]") -> None:
        """Close every period before `period` with `totals`."""
        for closed in range(max(self.newest, period - self._length), period):
            start = (closed % self._length) * _WIDTH
            self._rows[start : start + _WIDTH] = totals
        self.newest = period

    def at(self, period: int, totals: "array[float]") -> "array[float]":
        """Return the totals at the end of `period`; the running ones when it has not been closed yet."""
        if period >= self.newest:
            return totals
        start = (max(period, self.newest - self._length) % self._length) * _WIDTH
        return self._rows[start : start + _WIDTH]


class Sums:
    """Counts over one window, and what follows from them."""

    __slots__ = ("_values",)

    def __init__(self, values: Sequence[float]) -> None:
        self._values = values

    def __getitem__(self, counter: Counter) -> float:
        return self._values[counter]

    @property
    def failures(self) -> float:
        """Attempts that failed by the endpoint's fault."""
        v = self._values
        return v[Counter.SERVER_ERROR] + v[Counter.TIMEOUT] + v[Counter.CONNECT_ERROR] + v[Counter.BROKEN]

    @property
    def judged(self) -> float:
        """Attempts that say something about the endpoint: successes and failures, without rate limits."""
        return self._values[Counter.OK] + self.failures

    @property
    def error_rate(self) -> float:
        """Failures as a share of judged attempts; 0 without any."""
        return self.failures / self.judged if self.judged else 0.0

    @property
    def latency_samples(self) -> float:
        """Latency values of both channels."""
        return self._values[Counter.TTFT_N] + self._values[Counter.REPLY_N]

    def mean_log(self, first: Counter) -> float:
        """Mean of the log latency of the channel whose `_N` counter is `first`; the channel must have values."""
        return self._values[first + 1] / self._values[first]

    def spread(self, first: Counter) -> float:
        """Standard deviation of the log latency of a channel; 0 with fewer than two values."""
        n = self._values[first]
        if n < 2:
            return 0.0
        mean = self._values[first + 1] / n
        return sqrt(max(0.0, self._values[first + 2] / n - mean * mean))


class Window:
    """The recent past of one endpoint. About 50 KB; times are seconds on any steady clock."""

    __slots__ = (
        "_latency",
        "_minutes",
        "_seconds",
        "_totals",
        "_waiting",
        "consecutive_failures",
        "in_flight",
        "last_at",
        "last_ok_at",
    )

    def __init__(self) -> None:
        self._totals = array("d", bytes(_ROW_BYTES))
        self._seconds = _Ring(SECONDS)
        self._minutes = _Ring(MINUTES)
        self._latency = QuantileSketch()
        self._waiting: dict[str, float] = {}
        self.in_flight = 0
        self.consecutive_failures = 0
        self.last_at = 0.0
        self.last_ok_at = 0.0

    def _advance(self, now: float) -> None:
        second = int(now)
        if second > self._seconds.newest:
            self._seconds.advance(second, self._totals)
            minute = second // 60
            if minute > self._minutes.newest:
                self._minutes.advance(minute, self._totals)
        self.last_at = max(self.last_at, now)

    def started(self, attempt_id: str, now: float) -> None:
        """An attempt was sent."""
        self._advance(now)
        self._totals[Counter.STARTED] += 1
        self._waiting[attempt_id] = now
        self.in_flight += 1

    def first_byte(self, attempt_id: str) -> None:
        """The attempt's first byte of payload arrived: it hangs no longer."""
        self._waiting.pop(attempt_id, None)

    def finished(
        self,
        attempt_id: str,
        outcome: Outcome,
        now: float,
        *,
        ttft_s: float | None = None,
        reply_s: float | None = None,
        output_tokens: int = 0,
        generation_s: float = 0.0,
    ) -> None:
        """An attempt ended. A latency counts only with a success: a fast failure must not look fast.

        `ttft_s` is a stream's time to its first byte, `reply_s` the time to a whole reply; give one of them.
        """
        self._advance(now)
        self._waiting.pop(attempt_id, None)
        self.in_flight = max(0, self.in_flight - 1)
        totals = self._totals
        totals[COUNTER_OF[outcome]] += 1
        signal = TRAITS[outcome].signal
        if signal is Signal.FAILURE:
            self.consecutive_failures += 1
        elif signal is Signal.SUCCESS:
            self.consecutive_failures = 0
            self.last_ok_at = max(self.last_ok_at, now)
            if ttft_s is not None:
                self._add_latency(Counter.TTFT_N, ttft_s, now)
            elif reply_s is not None:
                self._add_latency(Counter.REPLY_N, reply_s, now)
            totals[Counter.OUTPUT_TOKENS] += output_tokens
            totals[Counter.GENERATION_S] += generation_s

    def _add_latency(self, first: Counter, value_s: float, now: float) -> None:
        value = log(max(value_s, 1e-4))
        baseline = self.baseline(now)
        if baseline[first] and value - baseline.mean_log(first) > log(2.5):
            self._totals[Counter.SLOW] += 1
        self._totals[first] += 1
        self._totals[first + 1] += value
        self._totals[first + 2] += value * value
        self._latency.add(max(value_s, 1e-4), now)

    def sums(self, now: float, span_s: int) -> Sums:
        """Return the counts over the last `span_s` (1 to 300) whole seconds and the current one."""
        return self._between(self._seconds.at(int(now) - span_s, self._totals), self._totals)

    def hour(self, now: float) -> Sums:
        """Return the counts over the last hour, to the minute."""
        return self._between(self._minutes.at(int(now) // 60 - MINUTES, self._totals), self._totals)

    def baseline(self, now: float) -> Sums:
        """Return the endpoint's own normal: the last 30 minutes without the newest five.

        While that holds fewer than 20 latency values, the newest minute is left out instead, then the newest 15 s, so
        that a young endpoint is compared with its oldest evidence.
        """
        second = int(now)
        oldest = self._minutes.at(second // 60 - 30, self._totals)
        values = self._between(oldest, self._minutes.at(second // 60 - 5, self._totals))
        for left_out_s in (60, 15):
            if values.latency_samples >= _MIN_BASELINE:
                return values
            values = self._between(oldest, self._seconds.at(second - left_out_s, self._totals))
        return values if values.latency_samples >= _MIN_BASELINE else Sums(array("d", bytes(_ROW_BYTES)))

    @staticmethod
    def _between(older: "array[float]", newer: "array[float]") -> Sums:
        return Sums([b - a for a, b in zip(older, newer, strict=True)])

    def latency_shift(self, now: float, span_s: int) -> tuple[float, float]:
        """Return (ratio of current latency to the baseline, values it rests on) over the last `span_s` seconds.

        The ratio is the geometric mean over both channels, each against its own baseline; 1.0 when either side has no
        values.
        """
        current, baseline = self.sums(now, span_s), self.baseline(now)
        weight = shift = 0.0
        for first in (Counter.TTFT_N, Counter.REPLY_N):
            if current[first] and baseline[first]:
                weight += current[first]
                shift += current[first] * (current.mean_log(first) - baseline.mean_log(first))
        return (exp(shift / weight), weight) if weight else (1.0, 0.0)

    def latency_quantile(self, fraction: float, now: float) -> float | None:
        """Return a latency quantile in seconds over the last five minutes, both channels together."""
        return self._latency.quantile(fraction, now)

    def oldest_waiting_s(self, now: float) -> float:
        """Return how long the oldest attempt in flight has waited for its first byte; 0 without one."""
        return max(0.0, now - next(iter(self._waiting.values()))) if self._waiting else 0.0

    def hanging(self, now: float, longer_than_s: float) -> int:
        """Return how many attempts in flight have waited longer than that for their first byte."""
        count = 0
        for started in self._waiting.values():
            if now - started <= longer_than_s:
                break
            count += 1
        return count
