"""One endpoint's recent past in bounded memory: any window up to an hour, O(1) per observation and per read.

Counters are kept as running totals. A ring holds the totals as they stood at the end of each of the last 300 seconds,
a second ring those at the end of each of the last 60 minutes; the sum over a window is then one subtraction. Reads
never mutate. An observation older than the newest one counts in the newest second, so that batches of several writers
may interleave.
"""

from array import array
from collections.abc import Collection, Sequence
from math import inf, log

from routing.counts import (
    COUNTER_OF,
    LATENCY,
    MIN_BASELINE,
    NO_SHIFT,
    NOTHING,
    SLOW_RATIO,
    Counter,
    Shift,
    Sums,
    shift_of,
)
from routing.flight import InFlight
from routing.outcomes import TRAITS, Outcome, Signal
from routing.ring import Ring
from routing.sketch import QuantileSketch

SECONDS = 300
MINUTES = 60
_SHORTEST_S = 1e-4
_LOG_SLOW = log(SLOW_RATIO)
# The pace of a shorter answer tells more of the network than of the model, that of a longer one more of the past than
# of now.
_MIN_PACE_TOKENS = 16
_MAX_PACE_S = 60.0

_PACE = (Counter.PACE_N,)


class Latency:
    """One latency channel: its counters, recent quantiles, and from where on a value (a logarithm) is slow."""

    __slots__ = ("first", "quantiles", "slow_from")

    def __init__(self, first: Counter) -> None:
        self.first = first
        self.quantiles = QuantileSketch()
        self.slow_from = inf


class Window:
    """The recent past of one endpoint, about 70 KiB; times are seconds on any steady clock.

    What is derived from seconds that are over is kept until the next second begins, and what was summed until the next
    observation; no read changes an answer.
    """

    __slots__ = (
        "_baseline",
        "_baseline_minute",
        "_baseline_newest",
        "_baseline_second",
        "_baseline_until",
        "_first_at",
        "_flight",
        "_known",
        "_known_second",
        "_known_shifts",
        "_minutes",
        "_reply",
        "_seconds",
        "_totals",
        "_ttft",
        "consecutive_failures",
        "last_at",
        "last_ok_at",
    )

    def __init__(self) -> None:
        self._totals = array("d", bytes(8 * len(Counter)))
        self._seconds = Ring(SECONDS, len(Counter))
        self._minutes = Ring(MINUTES, len(Counter))
        self._ttft = Latency(Counter.TTFT_N)
        self._reply = Latency(Counter.REPLY_N)
        self._flight = InFlight()
        self._known: dict[int, Sums] = {}
        self._known_shifts: dict[tuple[Counter, int], Shift] = {}
        self._known_second = -1
        self._baseline = NOTHING
        self._baseline_minute = self._baseline_second = self._baseline_newest = self._baseline_until = -1
        self.consecutive_failures = 0
        self.last_at = 0.0
        self._first_at = inf
        self.last_ok_at = -inf

    @property
    def in_flight(self) -> int:
        """Attempts that have not ended."""
        return len(self._flight)

    def _advance(self, now: float) -> None:
        second = int(now)
        if self._known:
            self._forget(second)
        if second > self._seconds.newest:
            self._first_at = min(self._first_at, now)
            self._seconds.advance(second, self._totals)
            minute = second // 60
            if minute > self._minutes.newest:
                self._minutes.advance(minute, self._totals)
        self.last_at = max(self.last_at, now)

    def started(self, attempt_id: str, now: float, *, streamed: bool = True) -> None:
        """An attempt was sent; `streamed` tells whether its first byte comes before the whole reply."""
        self._advance(now)
        self._totals[Counter.STARTED] += 1
        self._flight.started(attempt_id, now, streamed=streamed)

    def first_byte(self, attempt_id: str, now: float) -> None:
        """The attempt's first byte of payload arrived: it hangs no longer."""
        self._flight.first_byte(attempt_id, now)

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
        pace_from: float = -inf,
    ) -> float:
        """An attempt ended; return when it was sent (`now` for one that is not known).

        A latency counts only with a success: a fast failure must not look fast. One that was called off because another
        answered sooner counts as well: its latency is at least that. `ttft_s` is a stream's time to its first byte,
        `reply_s` the time to a whole reply; give one of them. `generation_s` is from a stream's first byte to its end;
        its pace counts if it was sent at `pace_from` or later. Raises ValueError for a value that is not finite, and
        counts nothing then.
        """
        value_s = reply_s if ttft_s is None else ttft_s
        if not (0 <= (value_s or 0.0) < inf and 0 <= generation_s < inf and 0 <= output_tokens < inf):
            raise ValueError(
                f"attempt {attempt_id!r}: expected finite values of 0 or more, got {value_s}, {generation_s}"
            )
        self._advance(now)
        started = self._flight.ended(attempt_id, now)
        self._totals[COUNTER_OF[outcome]] += 1
        traits = TRAITS[outcome]
        if traits.signal is Signal.SUCCESS:
            self.consecutive_failures = 0
            self.last_ok_at = max(self.last_ok_at, now)
            if value_s is not None:
                self._add_latency(self._reply if ttft_s is None else self._ttft, max(value_s, _SHORTEST_S), now)
            self._add_generation(output_tokens, generation_s, has_pace=started >= pace_from)
        elif traits.failed:
            self.consecutive_failures += 1
        elif outcome is Outcome.CANCELLED and value_s is not None:
            self._add_latency(self._reply if ttft_s is None else self._ttft, max(value_s, _SHORTEST_S), now)
        return started

    def _add_latency(self, channel: Latency, value_s: float, now: float) -> None:
        self.baseline(now)
        value = log(value_s)
        if value > channel.slow_from:
            self._totals[Counter.SLOW] += 1
        self._add(channel.first, value)
        channel.quantiles.add_log(value, now)

    def _add_generation(self, output_tokens: int, generation_s: float, *, has_pace: bool) -> None:
        self._totals[Counter.OUTPUT_TOKENS] += output_tokens
        if generation_s <= 0:
            return
        self._totals[Counter.GENERATION_S] += generation_s
        value = log(max(generation_s, _SHORTEST_S))
        self._add(Counter.GENERATION_N, value)
        if has_pace and output_tokens >= _MIN_PACE_TOKENS and generation_s <= _MAX_PACE_S:
            self._add(Counter.PACE_N, value - log(output_tokens))

    def _add(self, first: Counter, value: float) -> None:
        totals = self._totals
        totals[first] += 1
        totals[first + 1] += value
        totals[first + 2] += value * value

    def sums(self, now: float, span_s: int) -> Sums:
        """Return the counts over the current second and the `span_s` − 1 before it (1 to 300)."""
        second = int(now)
        if second - span_s >= self._seconds.newest:
            return NOTHING
        if second != self._known_second:
            self._forget(second)
        found = self._known.get(span_s)
        if found is None:
            found = self._known[span_s] = Sums(self._seconds.at(second - span_s, self._totals), self._totals)
        return found

    def _forget(self, second: int) -> None:
        self._known.clear()
        self._known_shifts.clear()
        self._known_second = second

    def columns(self, now: float, spans_s: Sequence[int]) -> "array[float]":
        """Return rows of one figure per `Counter`, one after the other: the running totals now, at the beginning of
        each span (1 to 300 s) and of the last hour (to the minute), and the counts of the baseline.

        For readers of many windows, who compute on all of them at once; `sums` is the difference of two such rows.
        """
        second, totals, at = int(now), self._totals, self._seconds.at
        rows = totals[:]
        for span_s in spans_s:
            rows += at(second - span_s, totals)
        rows += self._minutes.at(second // 60 - MINUTES, totals)
        rows.extend(self.baseline(now))
        return rows

    def baseline(self, now: float) -> Sums:
        """Return the endpoint's own normal: the last 30 minutes without the newest five, to the minute.

        While that holds fewer than 20 latency values, the newest minute is left out instead, then the newest 15 s, so
        that a young endpoint is compared with its oldest evidence; empty while even that has fewer.
        """
        # It rests on seconds that are over: it can change only when another second or a closed one begins, and one of
        # closed minutes only with the minute.
        second, newest = int(now), self._seconds.newest
        if second // 60 == self._baseline_minute:
            return self._baseline
        if second != self._baseline_second or newest != self._baseline_newest:
            self._baseline = self._make_baseline(second)
            self._baseline_second, self._baseline_newest = second, newest
            for channel in (self._ttft, self._reply):
                has_values = self._baseline[channel.first] > 0
                channel.slow_from = self._baseline.mean_log(channel.first) + _LOG_SLOW if has_values else inf
        return self._baseline

    def _make_baseline(self, second: int) -> Sums:
        minute = second // 60
        oldest = self._minutes.at(minute - 30, self._totals)
        self._baseline_until = (minute - 4) * 60
        values = Sums(oldest, self._minutes.at(minute - 5, self._totals))
        settled = values.latency_samples >= MIN_BASELINE and minute - 5 < self._minutes.newest
        self._baseline_minute = minute if settled else -1
        for left_out_s in (60, 15):
            if values.latency_samples >= MIN_BASELINE:
                return values
            self._baseline_until = second - left_out_s + 1
            values = Sums(oldest, self._seconds.at(second - left_out_s, self._totals))
        return values if values.latency_samples >= MIN_BASELINE else NOTHING

    def baseline_s(self, now: float) -> float:
        """Return how long a time the baseline is about, in seconds; it holds nothing that takes longer than that."""
        self.baseline(now)
        return max(0.0, self._baseline_until - max(self._first_at, (int(now) // 60 - 29) * 60))

    def latency_shift(self, now: float, span_s: int) -> Shift:
        """Return how current latency compares with the endpoint's own normal over the last `span_s` seconds."""
        return self._shift(LATENCY, now, span_s)

    def pace_shift(self, now: float, span_s: int) -> Shift:
        """Return how the seconds per output token of the last `span_s` seconds compare with the endpoint's own normal.

        Successful streams of 16 tokens or more count, if they ran no longer than a minute.
        """
        return self._shift(_PACE, now, span_s)

    def _shift(self, channels: tuple[Counter, ...], now: float, span_s: int) -> Shift:
        current = self.sums(now, span_s)
        if current is NOTHING:
            return NO_SHIFT
        key = (channels[0], span_s)
        found = self._known_shifts.get(key)
        if found is None:
            found = self._known_shifts[key] = shift_of(channels, current, self.baseline(now))
        return found

    def latency_quantile(self, fraction: float, now: float, *, streamed: bool = True) -> float | None:
        """Return a quantile over the last five minutes in seconds, of times to first byte or of whole replies."""
        return (self._ttft if streamed else self._reply).quantiles.quantile(fraction, now)

    def waiting(self, *, streamed: bool) -> Collection[float]:
        """Return when each attempt that still waits for its first byte was sent, in the order they were sent in."""
        return self._flight.waiting(streamed=streamed)

    def streaming(self) -> Collection[float]:
        """Return when the first byte of each stream that still runs arrived, in this order."""
        return self._flight.streaming()

    def oldest_s(self, now: float) -> float:
        """Return how long ago the attempt in flight that was announced first was sent; 0 without one."""
        return now - self._flight.oldest(now)

    def give_up(self, now: float, longer_than_s: float, *, streamed: bool) -> list[float]:
        """Give up the attempts that have waited longer than that for their first byte; return when each was sent.

        Each attempt is returned once, and stays in flight: how it ends is still to be heard.
        """
        return self._flight.give_up(now, longer_than_s, streamed=streamed)

    def was_given_up(self, attempt_id: str) -> bool:
        """Tell whether an attempt in flight was given up."""
        return self._flight.was_given_up(attempt_id)
