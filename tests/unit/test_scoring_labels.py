import math
from random import Random

import numpy as np
import pytest

from routing.outcomes import Outcome
from scoring.labels import Attempt, degraded_moments, labels


def ok(time: float, ttft_s: float | None = 0.1) -> Attempt:
    return Attempt(time, Outcome.OK, ttft_s)


def failed(time: float, outcome: Outcome = Outcome.SERVER_ERROR) -> Attempt:
    return Attempt(time, outcome, None)


def test_three_failures_of_ten_percent_within_30_s_degrade() -> None:
    attempts = [ok(i) for i in range(27)] + [failed(27.0), failed(28.0), failed(29.0)]
    assert degraded_moments(attempts) == [29.0]


def test_two_failures_or_nine_percent_do_not() -> None:
    assert degraded_moments([failed(0.0), failed(1.0)]) == []
    assert degraded_moments([ok(i / 2) for i in range(40)] + [failed(20.0), failed(21.0), failed(22.0)]) == []


def test_a_rate_limit_counts_and_a_cancelled_attempt_does_not() -> None:
    assert degraded_moments([failed(t, Outcome.RATE_LIMITED) for t in (0.0, 1.0, 2.0)]) == [2.0]
    for outcome in (Outcome.CANCELLED, Outcome.CLIENT_ERROR, Outcome.AUTH_ERROR):
        assert degraded_moments([failed(t, outcome) for t in (0.0, 1.0, 2.0)]) == []


def test_latency_is_judged_against_the_time_before_the_last_five_minutes() -> None:
    quiet = [ok(float(t)) for t in range(400)]
    slow = [ok(400.0 + t, 0.3) for t in range(30)]
    moments = degraded_moments(quiet + slow)
    assert moments[0] == 415.0  # 16 slow of 31 in the last 30 s: the median is slow
    assert degraded_moments(quiet[:200] + [ok(200.0 + t, 0.3) for t in range(30)]) == []  # no baseline yet


def test_simultaneous_attempts_are_judged_together() -> None:
    assert degraded_moments([failed(1.0), failed(1.0), failed(1.0)]) == [1.0]


def test_one_call_in_eight_seconds_is_judged_by_the_last_seven() -> None:
    quiet = [ok(8.0 * i) for i in range(50)]
    slow = [ok(400.0 + 8.0 * i, 0.3) for i in range(10)]
    assert degraded_moments(quiet + slow) == [a.time for a in slow[3:]]  # four of seven are slow
    hurt = [failed(400.0), ok(408.0), failed(416.0), ok(424.0), failed(432.0), ok(440.0), ok(448.0), ok(456.0)]
    assert degraded_moments(quiet + hurt) == [432.0, 440.0, 448.0]  # then the first is the eighth last
    recovered = [ok(480.0 + 8.0 * i) for i in range(10)]
    assert max(degraded_moments(quiet + slow + recovered)) == 496.0


def test_what_is_older_than_90_s_is_not_of_late() -> None:
    quiet = [ok(8.0 * i) for i in range(50)]
    assert degraded_moments(quiet + [ok(500.0 + 15.0 * i, 0.3) for i in range(20)])
    assert degraded_moments(quiet + [ok(500.0 + 16.0 * i, 0.3) for i in range(20)]) == []
    assert degraded_moments([failed(0.0), failed(45.0), failed(90.0)]) == [90.0]
    assert degraded_moments([failed(0.0), failed(45.0), failed(90.5)]) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("per_s", [0.8, 0.1])
def test_sliding_is_the_same_as_counting_anew(per_s: float, seed: int) -> None:
    rng, attempts, now = Random(seed), list[Attempt](), 0.0
    for _ in range(1500):
        now = round(now + rng.expovariate(per_s), 6)
        slow = 600 < now < 800
        outcome = rng.choice([Outcome.OK] * 20 + [Outcome.TIMEOUT, Outcome.RATE_LIMITED, Outcome.CANCELLED])
        ttft_s = rng.lognormvariate(0, 0.4) * (3 if slow else 1) if rng.random() < 0.8 else None
        attempts.append(Attempt(now, outcome, ttft_s if outcome is Outcome.OK else None))
    assert degraded_moments(attempts) == [a.time for a in attempts if counted_anew(attempts, a)]


def counted_anew(attempts: list[Attempt], at: Attempt) -> bool:
    if at.outcome is Outcome.CANCELLED:
        return False
    evidence = [a for a in attempts if a.outcome is not Outcome.CANCELLED]
    recent = of_late(evidence, at.time)
    timed = [a.ttft_s for a in of_late([a for a in evidence if a.ttft_s is not None], at.time) if a.ttft_s is not None]
    earlier = [a for a in evidence if at.time - 1800 <= a.time <= at.time - 300]
    before = [a.ttft_s for a in earlier if a.ttft_s is not None]
    failures = sum(a.outcome is not Outcome.OK for a in recent)
    usual = min(0.1, sum(a.outcome is not Outcome.OK for a in earlier) / (len(earlier) + 30))
    fails = failures >= 0.1 * len(recent) and math.sqrt(failures) >= math.sqrt(usual * len(recent)) + 1.5
    slow_from = np.max(np.quantile(before, (0.5, 0.95)) * (2.5, 1.0)) if before else math.inf
    slow = len(timed) >= 7 and np.median(timed) >= slow_from
    return fails or (at.ttft_s is not None and bool(slow))


def of_late(attempts: list[Attempt], now: float) -> list[Attempt]:
    recent, late = ([a for a in attempts if now - span_s <= a.time <= now] for span_s in (30, 90))
    return recent if len(recent) >= 7 else late[-7:]


def test_what_an_endpoint_always_does_is_no_degradation() -> None:
    """One attempt in twenty fails, as for half an hour: three failures among thirty are chance, nine are not."""
    usual = [failed(float(t)) if t % 20 == 0 else ok(float(t)) for t in range(1800)]
    by_chance = [failed(1800.0 + t) if t < 3 else ok(1800.0 + t) for t in range(27)]
    assert degraded_moments(usual + by_chance) == []
    assert degraded_moments(by_chance) == [1802.0 + t for t in range(25)]
    much = [failed(1800.0 + t) for t in range(9)]
    assert degraded_moments(usual + much)


def test_who_always_fails_more_than_a_tenth_degrades_all_the_same() -> None:
    bad = [failed(float(t)) if t % 5 == 0 else ok(float(t)) for t in range(1800)]
    worse = [failed(1800.0 + t) if t % 3 else ok(1800.0 + t) for t in range(30)]
    assert max(degraded_moments(bad)) < 400  # a fifth is no more than a tenth lets expect of 30 attempts
    assert degraded_moments(bad + worse)


def test_latency_that_always_varies_is_slow_only_beyond_its_slowest_twentieth() -> None:
    """One latency in eight is ten times the others: a median of three times is slow for one who never varies."""
    steady = [ok(float(t)) for t in range(1800)]
    varied = [ok(float(t), 1.0 if t % 8 == 0 else 0.1) for t in range(1800)]
    slow = [ok(1800.0 + t, 0.3) for t in range(30)]
    assert degraded_moments(steady + slow)
    assert degraded_moments(varied + slow) == []
    assert degraded_moments(varied + [ok(1800.0 + t, 1.5) for t in range(30)])


def test_a_label_looks_one_horizon_ahead_and_knows_what_it_does_not_know() -> None:
    attempts = [ok(float(t)) for t in range(100)] + [failed(100.0 + t / 10) for t in range(20)]
    moments = degraded_moments(attempts)
    found = labels(attempts, moments, [0.0, 30.0, 40.9, 41.5, 70.0], horizon_s=60)
    assert moments[0] == pytest.approx(100.2, abs=0.2)
    assert found.y.tolist() == [0, 0, 1, 1, 1]
    assert found.known.tolist() == [True, True, True, True, False]


def test_a_period_without_attempts_has_no_label() -> None:
    attempts = [ok(float(t)) for t in range(10)] + [ok(500.0)]
    assert labels(attempts, [], [2.0, 5.0, 100.0], horizon_s=60).known.tolist() == [True, False, False]
