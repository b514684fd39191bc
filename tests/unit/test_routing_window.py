"""The window gives the sums that a list of all observations would give."""

import random
from math import exp, log, sqrt

import numpy as np
import pytest

from routing.counts import COUNTER_OF, NO_SHIFT, Counter
from routing.outcomes import TRAITS, Outcome
from routing.window import SECONDS, Window

EPOCH = 1_790_000_000.0


def _finish(
    window: Window,
    now: float,
    outcome: Outcome = Outcome.OK,
    ttft_s: float | None = None,
    reply_s: float | None = None,
) -> None:
    window.started("a", now)
    window.finished("a", outcome, now, ttft_s=ttft_s, reply_s=reply_s)


@pytest.mark.parametrize("start", [0.0, EPOCH])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sums_over_any_span_are_those_of_the_whole_list(start: float, seed: int) -> None:
    rng, window, now = random.Random(seed), Window(), start + 7.3
    seen: list[tuple[int, Outcome]] = []
    for _ in range(600):
        now += rng.choice([0.01, 0.4, 0.9, 3.0, 40.0]) * rng.random()
        outcome = rng.choice(list(Outcome))
        _finish(window, now, outcome)
        seen.append((int(now), outcome))
    for later in (0.0, 0.9, 14.0, 301.0):
        for span_s in (1, 2, 15, 60, 299, SECONDS):
            sums = window.sums(now + later, span_s)
            inside = [outcome for second, outcome in seen if second > int(now + later) - span_s]
            for counter in set(COUNTER_OF.values()):
                assert sums[counter] == sum(COUNTER_OF[o] is counter for o in inside)
            assert sums[Counter.STARTED] == len(inside)
            assert sums.failures == sum(TRAITS[o].failed for o in inside)
            assert sums.judged == sums.failures + sums[Counter.OK]
            limited = inside.count(Outcome.RATE_LIMITED)
            assert (sums.bad, sums.answered) == (sums.failures + limited, sums.judged + limited)


def _hour(window: Window, now: float, counter: Counter) -> float:
    """Return a count of the last hour, from the running totals now and then."""
    now_and_then = window.columns(now, ())
    return now_and_then[counter] - now_and_then[len(Counter) + counter]


def test_the_hour_forgets_what_is_older() -> None:
    window = Window()
    _finish(window, EPOCH, Outcome.TIMEOUT)
    _finish(window, EPOCH + 1800, Outcome.TIMEOUT)
    assert [_hour(window, EPOCH + later, Counter.TIMEOUT) for later in (1800, 3660, 9000)] == [2, 1, 0]


@pytest.mark.parametrize("seed", [3, 4])
def test_columns_are_what_the_sums_are_made_of(seed: int) -> None:
    """Young and old, asked in any order of time: a baseline kept for a minute is the one made anew."""
    rng, window, now, spans_s = random.Random(seed), Window(), EPOCH, (15, 60, SECONDS)
    width = len(Counter)
    for _ in range(1500):
        now += rng.choice([0.2, 1.0, 3.0, 30.0]) * rng.random()
        _finish(window, now - rng.choice([0.0, 0.0, 5.0]), rng.choice(list(Outcome)), ttft_s=rng.random())
        asked = now + rng.choice([0.0, 0.5, 40.0, 400.0, 2000.0])
        flat = window.columns(asked, spans_s).tolist()
        rows = [flat[i : i + width] for i in range(0, len(flat), width)]
        for older, expected in zip(rows[1:-2], [list(window.sums(asked, span_s)) for span_s in spans_s], strict=True):
            assert [a - b for a, b in zip(rows[0], older, strict=True)] == expected
        assert rows[-1] == list(window.baseline(asked))
        if asked < now + 1:
            assert rows[-1] == list(window._make_baseline(int(asked)))


def test_a_long_silence_empties_every_window() -> None:
    window = Window()
    for i in range(50):
        _finish(window, EPOCH + i, ttft_s=0.2)
    later = EPOCH + 86_400
    assert window.sums(later, SECONDS).judged == 0
    assert _hour(window, later, Counter.OK) == 0
    assert window.latency_quantile(0.5, later) is None
    _finish(window, later, Outcome.SERVER_ERROR)
    assert window.sums(later, SECONDS).error_rate == 1.0


def test_an_observation_from_the_past_counts_in_the_newest_second() -> None:
    window = Window()
    _finish(window, EPOCH + 100)
    _finish(window, EPOCH + 40, Outcome.SERVER_ERROR)
    assert window.last_at == EPOCH + 100
    assert window.sums(EPOCH + 100, 1).failures == 1
    assert window.sums(EPOCH + 101, 1).failures == 0


def test_a_failure_never_looks_fast() -> None:
    window = Window()
    for i in range(30):
        _finish(window, EPOCH + i, Outcome.SERVER_ERROR, ttft_s=0.001)
    assert window.sums(EPOCH + 30, 60).latency_samples == 0
    assert window.latency_quantile(0.5, EPOCH + 30) is None


def test_too_few_values_make_no_baseline() -> None:
    window = Window()
    for i in range(19):
        _finish(window, EPOCH + i, ttft_s=0.2)
    assert window.baseline(EPOCH + 400).latency_samples == 0
    assert window.latency_shift(EPOCH + 18, 15) is NO_SHIFT


@pytest.mark.parametrize(("age_s", "left_out_s"), [(40, 15), (120, 60)])
def test_a_young_endpoint_is_compared_with_its_oldest_evidence(age_s: int, left_out_s: int) -> None:
    window = Window()
    for i in range(age_s):
        _finish(window, EPOCH + i, ttft_s=0.2)
    now = EPOCH + age_s
    assert window.baseline(now).latency_samples == age_s - left_out_s + 1
    assert exp(window.baseline(now).mean_log(Counter.TTFT_N)) == pytest.approx(0.2)


def test_the_baseline_of_an_old_endpoint_leaves_the_newest_minutes_out() -> None:
    window = Window()
    for i in range(1800):
        _finish(window, EPOCH + i, ttft_s=0.2 if i < 1560 else 2.0)
    assert exp(window.baseline(EPOCH + 1799).mean_log(Counter.TTFT_N)) == pytest.approx(0.2)
    shift = window.latency_shift(EPOCH + 1799, 60)
    assert (shift.ratio, shift.samples, shift.standard_error) == pytest.approx((10.0, 60, 0.0), abs=1e-6)
    assert window.sums(EPOCH + 1799, 60)[Counter.SLOW] == 60


def test_each_latency_channel_is_compared_with_itself() -> None:
    window = Window()
    for i in range(600):
        if i % 2:
            _finish(window, EPOCH + i, ttft_s=0.2)
        else:
            _finish(window, EPOCH + i, reply_s=4.0)
    for i in range(600, 615):
        _finish(window, EPOCH + i, reply_s=4.0)
    shift = window.latency_shift(EPOCH + 614, 15)
    assert (shift.ratio, shift.samples) == pytest.approx((1.0, 15))


@pytest.mark.parametrize("samples", [4, 25])
def test_the_standard_error_of_a_shift_is_the_usual_spread_over_the_root_of_the_samples(samples: int) -> None:
    window = Window()
    for i in range(600):
        _finish(window, EPOCH + i, ttft_s=exp(0.5 if i % 2 else -0.5))
    for _ in range(samples):
        _finish(window, EPOCH + 650, ttft_s=2.0)
    shift = window.latency_shift(EPOCH + 650, 15)
    assert (shift.ratio, shift.samples) == pytest.approx((2.0, samples), rel=1e-3)
    assert shift.standard_error == pytest.approx(0.5 / sqrt(samples), rel=1e-3)


@pytest.mark.parametrize("field", ["ttft_s", "reply_s", "generation_s", "output_tokens"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_value_that_is_not_finite_is_refused_before_anything_is_counted(field: str, value: float) -> None:
    window, untouched = Window(), Window()
    for each in (window, untouched):
        each.started("a", EPOCH)
    with pytest.raises(ValueError, match="attempt 'a': expected finite values"):
        window.finished("a", Outcome.OK, EPOCH + 50, **{field: value})  # type: ignore[arg-type]  # one field of the table
    for each in (window, untouched):
        assert (each.in_flight, each.last_at, list(each.waiting(streamed=True))) == (1, EPOCH, [EPOCH])
        assert each.sums(EPOCH + 50, SECONDS).judged == 0
    for i in range(60):
        _finish(window, EPOCH + 60 + i, ttft_s=0.2)
    assert exp(window.baseline(EPOCH + 120).mean_log(Counter.TTFT_N)) == pytest.approx(0.2)


def test_the_end_of_an_attempt_tells_when_it_was_sent() -> None:
    window = Window()
    window.started("a", EPOCH)
    assert window.finished("a", Outcome.OK, EPOCH + 7) == EPOCH
    assert window.finished("never announced", Outcome.OK, EPOCH + 9) == EPOCH + 9


def test_quantiles_are_kept_per_channel() -> None:
    window = Window()
    for i in range(50):
        _finish(window, EPOCH + i, ttft_s=0.2)
        _finish(window, EPOCH + i, reply_s=8.0)
    assert window.latency_quantile(0.5, EPOCH + 50) == pytest.approx(0.2, rel=0.05)
    assert window.latency_quantile(0.5, EPOCH + 50, streamed=False) == pytest.approx(8.0, rel=0.05)


def test_the_spread_is_the_standard_deviation_of_the_logs() -> None:
    rng, window = random.Random(5), Window()
    values = [rng.lognormvariate(-1, 0.7) for _ in range(200)]
    for i, value in enumerate(values):
        _finish(window, EPOCH + i / 10, ttft_s=value)
    sums = window.sums(EPOCH + 20, 60)
    assert sums.spread(Counter.TTFT_N) == pytest.approx(np.std([log(v) for v in values]))
    assert sums.spread(Counter.REPLY_N) == 0.0


def test_in_flight_and_waiting_follow_starts_first_bytes_and_ends() -> None:
    window = Window()
    for i, attempt in enumerate("abc"):
        window.started(attempt, EPOCH + i)
    assert (window.in_flight, list(window.waiting(streamed=True))) == (3, [EPOCH, EPOCH + 1, EPOCH + 2])
    window.first_byte("a", EPOCH + 2)
    window.started("whole", EPOCH + 1.5, streamed=False)
    assert list(window.waiting(streamed=True)) == [EPOCH + 1, EPOCH + 2]
    assert list(window.waiting(streamed=False)) == [EPOCH + 1.5]
    assert list(window.streaming()) == [EPOCH + 2]
    assert window.in_flight == 4
    for attempt in ("a", "b", "c", "whole"):
        window.finished(attempt, Outcome.OK, EPOCH + 6)
    assert window.in_flight == 0
    assert not any((window.waiting(streamed=True), window.waiting(streamed=False), window.streaming()))


def test_consecutive_failures_end_with_a_success_only() -> None:
    window = Window()
    for outcome in (Outcome.TIMEOUT, Outcome.RATE_LIMITED, Outcome.CANCELLED, Outcome.AUTH_ERROR, Outcome.STALLED):
        _finish(window, EPOCH, outcome)
    assert window.consecutive_failures == 2
    _finish(window, EPOCH + 1)
    assert (window.consecutive_failures, window.last_ok_at) == (0, EPOCH + 1)


def test_throughput_counts_successes_only() -> None:
    window = Window()
    for outcome in (Outcome.OK, Outcome.TRUNCATED):
        window.finished("a", outcome, EPOCH, ttft_s=0.1, output_tokens=50, generation_s=2.0)
    sums = window.sums(EPOCH, 15)
    assert (sums[Counter.OUTPUT_TOKENS], sums[Counter.GENERATION_S]) == (50, 2.0)
    assert sums[Counter.PACE_N] == 1
    assert sums.mean_log(Counter.PACE_N) == pytest.approx(log(0.04))
    assert sums.mean_log(Counter.GENERATION_N) == pytest.approx(log(2.0))


def _stream(window: Window, now: float, tokens: int, generation_s: float) -> None:
    window.finished("a", Outcome.OK, now, ttft_s=0.1, output_tokens=tokens, generation_s=generation_s)


def test_the_pace_is_compared_with_the_endpoints_own() -> None:
    """F-01: seconds per token, whatever the lengths of the answers."""
    window = Window()
    for i in range(600):
        _stream(window, EPOCH + i, 100 + i, (100 + i) * 0.02)
    assert window.pace_shift(EPOCH + 599, 15).ratio == pytest.approx(1.0)
    for i in range(600, 615):
        _stream(window, EPOCH + i, 40, 40 * 0.1)
    shift = window.pace_shift(EPOCH + 614, 15)
    assert (shift.ratio, shift.samples) == pytest.approx((5.0, 15))
    assert window.latency_shift(EPOCH + 614, 15).ratio == pytest.approx(1.0), "the first bytes come as ever"


@pytest.mark.parametrize(("tokens", "generation_s"), [(15, 3.0), (0, 3.0), (100, 0.0), (2000, 60.1)])
def test_an_answer_too_short_too_long_or_not_measured_has_no_pace(tokens: int, generation_s: float) -> None:
    window = Window()
    _stream(window, EPOCH, tokens, generation_s)
    assert window.sums(EPOCH, 15)[Counter.PACE_N] == 0


@pytest.mark.parametrize(("pace_from", "counted"), [(EPOCH, 1), (EPOCH + 0.1, 0)])
def test_the_pace_of_a_stream_from_before_a_return_does_not_count(pace_from: float, counted: int) -> None:
    window = Window()
    window.started("a", EPOCH)
    window.finished("a", Outcome.OK, EPOCH + 9, ttft_s=0.1, output_tokens=50, generation_s=8.9, pace_from=pace_from)
    sums = window.sums(EPOCH + 9, 15)
    assert (sums[Counter.PACE_N], sums[Counter.GENERATION_N]) == (counted, 1)


@pytest.mark.parametrize("streamed", [True, False])
def test_an_attempt_is_given_up_once_and_stays_in_flight_until_it_ends(streamed: bool) -> None:
    window = Window()
    for i, attempt in enumerate("abc"):
        window.started(attempt, EPOCH + i, streamed=streamed)
    assert window.give_up(EPOCH + 4, 3.0, streamed=streamed) == [EPOCH]
    assert window.give_up(EPOCH + 4, 3.0, streamed=streamed) == []
    assert window.give_up(EPOCH + 5.5, 3.0, streamed=streamed) == [EPOCH + 1, EPOCH + 2]
    assert window.give_up(EPOCH + 60, 3.0, streamed=not streamed) == []
    assert (window.in_flight, len(window.waiting(streamed=streamed))) == (3, 3)
    window.first_byte("b", EPOCH + 6)
    assert window.was_given_up("b"), "it may still end as a failure, which has been counted"
    window.finished("b", Outcome.STALLED, EPOCH + 7)
    assert [window.was_given_up(attempt) for attempt in "abc"] == [True, False, True]
    window.started("b", EPOCH + 8, streamed=streamed)
    assert window.give_up(EPOCH + 12, 3.0, streamed=streamed) == [EPOCH + 8], "an id may be used again"
