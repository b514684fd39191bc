"""What is counted of one endpoint, and what follows from the counts of a span."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import exp, sqrt
from operator import itemgetter, sub

from routing.outcomes import Outcome

MIN_BASELINE = 20
# A latency is slow from this many times the usual one on.
SLOW_RATIO = 2.5
_Z95 = 1.645


class Counter(IntEnum):
    """What is counted. Latency is kept in two channels, because a whole reply takes longer than a stream's first
    byte. Generation is a stream's time from its first byte to its end, pace its share of that per output token. A
    channel is its number of values, the sum of their logarithms and that of the squares, in this order.
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
    PACE_N = 17
    PACE_LOG = 18
    PACE_LOG_SQ = 19
    POOR_ANSWER = 20
    GENERATION_N = 21
    GENERATION_LOG = 22
    GENERATION_LOG_SQ = 23


COUNTER_OF: dict[Outcome, Counter] = {
    Outcome.OK: Counter.OK,
    Outcome.SERVER_ERROR: Counter.SERVER_ERROR,
    Outcome.TIMEOUT: Counter.TIMEOUT,
    Outcome.CONNECT_ERROR: Counter.CONNECT_ERROR,
    Outcome.RATE_LIMITED: Counter.RATE_LIMITED,
    Outcome.STALLED: Counter.BROKEN,
    Outcome.TRUNCATED: Counter.POOR_ANSWER,
    Outcome.MALFORMED: Counter.POOR_ANSWER,
    Outcome.EMPTY: Counter.POOR_ANSWER,
    Outcome.REFUSED_FORMAT: Counter.POOR_ANSWER,
    Outcome.AUTH_ERROR: Counter.NEUTRAL,
    Outcome.CLIENT_ERROR: Counter.NEUTRAL,
    Outcome.UNSUPPORTED: Counter.NEUTRAL,
    Outcome.CANCELLED: Counter.NEUTRAL,
}

# What counts as a failure: no usable answer, by the endpoint's fault.
FAILURES = (Counter.SERVER_ERROR, Counter.TIMEOUT, Counter.CONNECT_ERROR, Counter.BROKEN, Counter.POOR_ANSWER)
# The channels of how long callers wait for an answer, each by its first counter.
LATENCY = (Counter.TTFT_N, Counter.REPLY_N)
# Twice as fast as to index and add one by one, on the way of every observation.
_failures_of = itemgetter(*FAILURES)


class Sums:
    """Counts between two moments, and what follows from them."""

    __slots__ = ("_values",)

    def __init__(self, older: Sequence[float], newer: Sequence[float]) -> None:
        self._values: list[float] = list(map(sub, newer, older))

    def __getitem__(self, counter: int) -> float:
        return self._values[counter]

    def __iter__(self) -> Iterator[float]:
        return iter(self._values)

    @property
    def failures(self) -> float:
        """Attempts that gave their caller no usable answer by the endpoint's fault, poor answers among them."""
        failures: float = sum(_failures_of(self._values))
        return failures

    @property
    def judged(self) -> float:
        """Attempts that say something about the endpoint: successes and failures, without rate limits."""
        return self._values[Counter.OK] + self.failures

    @property
    def bad(self) -> float:
        """Failures and rate limits."""
        return self.failures + self._values[Counter.RATE_LIMITED]

    @property
    def answered(self) -> float:
        """Attempts that say something about the endpoint or its quota."""
        return self.judged + self._values[Counter.RATE_LIMITED]

    @property
    def error_rate(self) -> float:
        """Failures as a share of judged attempts; 0 without any."""
        failures = self.failures
        return failures / (self._values[Counter.OK] + failures) if failures else 0.0

    @property
    def latency_samples(self) -> float:
        """Latency values of both channels."""
        return self._values[Counter.TTFT_N] + self._values[Counter.REPLY_N]

    def mean_log(self, first: Counter) -> float:
        """Mean logarithm of the channel whose `_N` counter is `first`; the channel must have values."""
        return self._values[first + 1] / self._values[first]

    def ninety_fifth(self, first: Counter) -> float:
        """The 95th percentile of a channel, as its logarithms' mean and spread give it (they are about normal); the
        channel must have values.
        """
        return exp(self.mean_log(first) + _Z95 * self.spread(first))

    def spread(self, first: Counter) -> float:
        """Standard deviation of the logarithms of a channel; 0 with fewer than two values."""
        n = self._values[first]
        if n < 2:
            return 0.0
        mean = self._values[first + 1] / n
        return sqrt(max(0.0, self._values[first + 2] / n - mean * mean))


NOTHING = Sums((0.0,) * len(Counter), (0.0,) * len(Counter))


@dataclass(frozen=True, slots=True)
class Shift:
    """Current durations against the endpoint's own normal.

    `ratio`: geometric mean over the channels, each against its own baseline, above 1 when slower than usual;
    `samples`: values it rests on; `standard_error`: of its logarithm, by the baseline's spread.
    """

    ratio: float
    samples: float
    standard_error: float


NO_SHIFT = Shift(1.0, 0.0, 0.0)


def shift_of(channels: Sequence[Counter], current: Sums, baseline: Sums) -> Shift:
    """Return how `current` compares with `baseline` over the channels that have 20 values there."""
    weight = shift = variance = 0.0
    for first in channels:
        n = current[first]
        if n and baseline[first] >= MIN_BASELINE:
            weight += n
            shift += n * (current.mean_log(first) - baseline.mean_log(first))
            variance += n * baseline.spread(first) ** 2
    if not weight:
        return NO_SHIFT
    return Shift(exp(shift / weight), weight, sqrt(variance) / weight)
