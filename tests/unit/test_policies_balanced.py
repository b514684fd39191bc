"""The balanced baselines against their published numbers, each at its boundary."""

from collections import Counter
from math import log

import pytest

from routing.outcomes import Outcome
from sim.policies.load import PeakEwma, two_of
from sim.policies.peak_ewma import RetryBudget
from sim.policies.windows import SlidingCount
from tests.policy_driver import ERROR, LIMITED, OK, Feed, ended, feed


def shares(fed: Feed, now: float, draws: int = 1000) -> dict[int | None, float]:
    counts = Counter(fed.chosen(now, draw=(i + 0.5) / draws) for i in range(draws))
    return {endpoint: count / draws for endpoint, count in counts.items()}


# Bifrost: > 5 % failed, > 2 % degraded, back below 2 % with half of the expected traffic, 25 % exploration.


def served(fed: Feed, failed_of_first: int, total: int, now: float) -> None:
    for endpoint in range(3):
        for number in range(total):
            fed.attempt(endpoint, ERROR if endpoint == 0 and number < failed_of_first else OK, now)
    fed.policy.tick(now)


def test_bifrost_spreads_evenly_over_equals() -> None:
    fed = feed("bifrost")
    served(fed, 0, 100, 5.0)
    assert shares(fed, 5.0) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, abs=0.002)


def test_bifrost_takes_all_traffic_above_five_percent_errors_and_half_above_two() -> None:
    at_five, above = feed("bifrost"), feed("bifrost")
    served(at_five, 5, 100, 5.0)
    assert 0.05 < shares(at_five, 5.0)[0] < 0.3, "degraded, not failed"
    served(above, 6, 100, 5.0)
    assert 0 not in shares(above, 5.0)
    at_two = feed("bifrost")
    served(at_two, 2, 100, 5.0)
    assert shares(at_two, 5.0)[0] > 0.32, "healthy"


def test_bifrost_s_penalty_loses_ninety_percent_in_thirty_seconds() -> None:
    fed = feed("bifrost")
    served(fed, 40, 100, 5.0)
    for second in range(10, 35, 5):
        served(fed, 0, 0, float(second))
        assert 0 not in shares(fed, float(second))
    served(fed, 0, 0, 35.0)
    assert 0 in shares(fed, 35.0), "40 % × 0.1 = 4 % is below 5 %"


def test_bifrost_s_route_is_healthy_again_only_with_half_of_its_expected_traffic() -> None:
    def after(requests_of_first: int) -> float:
        fed = feed("bifrost")
        served(fed, 6, 100, 5.0)
        for second in range(10, 60, 5):
            served(fed, 0, 0, float(second))
        fed.attempts(1, OK, 100 - requests_of_first, 60.0)
        fed.attempts(0, OK, requests_of_first, 60.0)
        fed.attempts(2, OK, 50, 60.0)
        fed.policy.tick(60.0)
        return shares(fed, 60.0)[0]

    assert after(24) < 0.28
    assert after(25) > 0.32


def test_bifrost_falls_back_over_every_endpoint_once() -> None:
    fed = feed("bifrost")
    assert fed.retry((0, ERROR), (1, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (1, ERROR), (2, ERROR)) is None
    assert {fed.chosen(0.0, tried=(0, 2), draw=d / 10) for d in range(10)} == {1}
    assert fed.chosen(0.0, tried=(0, 1, 2)) is None


# LLMGateway: price 0.6, uptime 0.5, < 95 % penalised, left < 85 % or by a margin of 0.15, 1 % exploration.


def test_llmgateway_starts_with_the_cheapest_and_explores_one_percent() -> None:
    fed = feed("llmgateway", 4, prices=(2.0, 1.0, 3.0, 4.0))
    assert shares(fed, 0.0, 10_000) == pytest.approx({0: 0.0025, 1: 0.9925, 2: 0.0025, 3: 0.0025}, abs=0.0002)


def test_llmgateway_leaves_for_a_margin_above_its_threshold() -> None:
    uptime, weights = 90 / 102, 0.6 + 0.5 + 0.05 + 0.025
    behind = 0.5 / weights * (1 / uptime - 1) + (5 * (0.95 - uptime) / 0.95) ** 2
    for other_price, chosen in ((1.07, 0), (1.05, 1)):
        fed = feed("llmgateway", 2, prices=(1.0, other_price))
        fed.attempts(1, OK, 10, 1.0)
        fed.attempts(0, OK, 90, 1.0)
        fed.attempts(0, ERROR, 12, 1.0)
        fed.policy.tick(1.0)
        assert (behind - 0.6 / weights * (other_price - 1.0) > 0.15) is (chosen == 1)
        assert fed.chosen(1.0) == chosen


@pytest.mark.parametrize(("failures", "chosen"), [(15, 0), (16, 1)])
def test_llmgateway_leaves_below_85_percent_uptime_whatever_the_margin(failures: int, chosen: int) -> None:
    fed = feed("llmgateway", 2, prices=(1.0, 1.5), margin=10.0)
    fed.attempts(0, OK, 100 - failures, 1.0)
    fed.attempts(0, ERROR, failures, 1.0)
    fed.policy.tick(1.0)
    assert fed.chosen(1.0) == chosen


def test_llmgateway_counts_the_last_minute_ten_times_and_forgets_after_an_hour() -> None:
    fed = feed("llmgateway", 2, margin=10.0, left_below_share=0.5)
    fed.attempts(0, OK, 90, 1.0)
    fed.attempts(0, ERROR, 10, 301.0)
    fed.policy.tick(302.0)
    assert fed.chosen(302.0) == 1, "100 weighted failures against 90 successes of five minutes ago"
    fed.attempts(0, OK, 30, 303.0)
    fed.policy.tick(303.0)
    fed.attempts(1, ERROR, 20, 304.0)
    fed.policy.tick(304.0)
    assert fed.chosen(304.0) == 0
    fed.policy.tick(304.0 + 3600.0)
    fed.attempts(0, ERROR, 1, 3905.0)
    fed.policy.tick(3905.0)
    assert fed.chosen(3905.0) == 1, "nothing else is left of an hour ago"


def test_llmgateway_retries_twice_on_the_best_left() -> None:
    fed = feed("llmgateway", 3, prices=(1.0, 3.0, 2.0))
    assert fed.chosen(0.0, tried=(0,)) == 2
    assert fed.retry((0, ERROR), (2, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (2, ERROR), (1, ERROR)) is None


# Helicone: > 10 % of ≥ 20 in 60 s, monitored every 5 s; no retries.


@pytest.mark.parametrize(("total", "failed", "removed"), [(20, 3, True), (20, 2, False), (19, 19, False)])
def test_helicone_removes_above_ten_percent_of_twenty(total: int, failed: int, removed: bool) -> None:
    fed = feed("helicone", 2)
    fed.attempts(0, ERROR, failed, 1.0)
    fed.attempts(0, OK, total - failed, 1.0)
    before = shares(fed, 1.0)
    assert 0 in before, "the monitor has not run"
    fed.policy.tick(5.0)
    assert (0 not in shares(fed, 5.0)) is removed


def test_helicone_returns_when_the_minute_has_passed() -> None:
    fed = feed("helicone", 2)
    fed.attempts(0, ERROR, 20, 1.0)
    fed.policy.tick(55.0)
    assert 0 not in shares(fed, 55.0)
    fed.policy.tick(65.0)
    assert 0 in shares(fed, 65.0)


def test_helicone_removes_a_rate_limited_provider_for_its_retry_after_and_never_retries() -> None:
    fed = feed("helicone", 2)
    fed.attempt(0, LIMITED, 10.0, retry_after_s=7.0)
    fed.attempt(1, LIMITED, 10.0)
    assert fed.chosen(16.9) is None
    assert shares(fed, 17.0) == {0: 1.0}
    assert 1 in shares(fed, 40.0)
    assert fed.retry((0, ERROR)) is None


def test_helicone_and_linkerd_differ_in_decay_and_in_what_they_assume() -> None:
    for name, first_s, then in (("helicone", 2.0, 30.0), ("peak-ewma", 0.06, 10.0)):
        fed = feed(name, 2)
        fed.policy.started(0, "slow", 0.0)
        fed.policy.first_token(0, "slow", first_s)
        fed.policy.finished(ended(0, OK, "slow"), 1.5)
        even = first_s + then * log(2.0)
        assert shares(fed, even - 0.01) == {1: 1.0}, "twice what an endpoint never heard of is taken to need"
        assert shares(fed, even + 0.01) == {0: 1.0}


# SMG: 10 in a row, 60 s, 3 successes; checks; 5 retries.


def test_smg_ejects_after_ten_failures_in_a_row_for_sixty_seconds() -> None:
    fed = feed("smg", 2)
    fed.attempts(0, ERROR, 9, 1.0)
    fed.attempt(0, OK, 1.0)
    fed.attempts(0, ERROR, 9, 1.0)
    assert fed.chosen(1.0, session=0) == 0
    fed.attempt(0, LIMITED, 1.0)
    fed.attempt(0, ERROR, 30.0)
    assert fed.chosen(60.9, session=0) == 1
    assert fed.chosen(61.0, session=0) == 0, "a late failure does not lengthen the ejection"


def test_smg_needs_three_successes_and_no_failure_while_probing() -> None:
    fed = feed("smg", 2)
    fed.attempts(0, ERROR, 10, 1.0)
    fed.attempts(0, OK, 2, 61.0)
    fed.attempt(0, ERROR, 62.0)
    assert fed.chosen(121.9) == 1
    fed.attempts(0, OK, 2, 122.0)
    fed.attempt(0, ERROR, 122.0)
    assert fed.chosen(181.9) == 1, "successes before the last ejection do not count"
    fed.attempts(0, OK, 3, 182.0)
    fed.attempts(0, ERROR, 9, 183.0)
    assert fed.chosen(183.0) == 0, "active: nine more are not enough"


def test_smg_s_health_checks_take_three_failures_and_two_successes() -> None:
    fed = feed("smg", 2)
    assert fed.policy.probe_timeout_s == 5.0
    assert list(fed.policy.tick(59.0)) == []
    assert list(fed.policy.tick(60.0)) == [0, 1]
    for _ in range(2):
        fed.policy.probed(ended(0, ERROR), 61.0)
    assert fed.chosen(61.0) == 0
    fed.policy.probed(ended(0, Outcome.TIMEOUT, latency_s=5.0), 66.0)
    assert fed.chosen(61.0) == 1
    fed.policy.probed(ended(0, OK), 121.0)
    assert fed.chosen(121.0) == 1
    fed.policy.probed(ended(0, OK), 181.0)
    assert fed.chosen(181.0) == 0


def test_smg_waits_longer_before_each_of_five_retries() -> None:
    fed = feed("smg")
    waits = [fed.retry(*[(0, ERROR)] * made, draw=0.5) for made in range(1, 7)]
    assert waits[:5] == pytest.approx([0.05, 0.075, 0.1125, 0.16875, 0.253125])
    assert waits[5] is None
    assert fed.retry((0, ERROR), draw=0.0) == pytest.approx(0.04)
    assert fed.retry((0, Outcome.AUTH_ERROR)) is None


def test_smg_keeps_a_session_on_its_worker_until_loads_are_too_uneven() -> None:
    fed = feed("smg", 3)
    assert [fed.chosen(0.0, session=s) for s in range(4)] == [0, 1, 2, 0]
    for number in range(64):
        fed.policy.started(0, f"s{number}", 0.0)
    assert fed.chosen(0.0, session=0) == 0
    fed.policy.started(0, "s64", 0.0)
    assert fed.chosen(0.0, session=0) == 1


def test_smg_refuses_with_no_worker_in_service() -> None:
    fed = feed("smg", 1)
    fed.attempts(0, ERROR, 10, 1.0)
    assert fed.chosen(2.0) is None


# Peak-EWMA.


def test_two_different_places_come_from_one_draw_equally_often() -> None:
    pairs = Counter(two_of(4, (i + 0.5) / 1200) for i in range(1200))
    assert len(pairs) == 12
    assert set(pairs.values()) == {100}
    assert two_of(1, 0.9) == (0, 0)


def test_peak_ewma_jumps_to_a_worse_value_and_forgets_within_its_decay() -> None:
    load = PeakEwma(1, decay_s=10.0, default_s=0.03)
    assert load.cost(0, 0.0) == 0.03
    load.sent(0, "a", 0.0)
    assert load.cost(0, 0.0) == 0.06, "cost counts what is pending"
    load.ended(0, "a", 2.0)
    assert load.cost(0, 2.0) == 2.0
    assert load.cost(0, 12.0) == pytest.approx(2.0 / 2.718281828)
    load.sent(0, "b", 11.9)
    load.ended(0, "b", 12.0)
    kept = 1 / 2.718281828
    assert load.cost(0, 12.0) == pytest.approx(2.0 * kept + 0.1 * (1 - kept))


def test_peak_ewma_prefers_the_faster_of_two() -> None:
    fed = feed("peak-ewma", 2)
    for endpoint, answer_s in ((0, 1.0), (1, 0.2)):
        fed.policy.started(endpoint, f"x{endpoint}", 0.0)
        fed.policy.first_token(endpoint, f"x{endpoint}", answer_s)
        fed.policy.finished(ended(endpoint, OK, f"x{endpoint}"), 1.5)
    assert shares(fed, 1.5) == {1: 1.0}


def test_the_retry_budget_is_a_fifth_of_the_requests_and_a_hundred_in_ten_seconds() -> None:
    budget = RetryBudget(0.2, 10.0, 10.0)
    assert sum(budget.withdraw(0.0) for _ in range(200)) == pytest.approx(100 / 1.2, abs=1), "none of them was sent"
    for _ in range(100):
        budget.deposit(5.0)
    assert 15 <= sum(budget.withdraw(5.0) for _ in range(200)) <= 17, "20 more"
    assert not budget.withdraw(9.9)
    assert budget.withdraw(10.0), "the first withdrawals have left the window"


def test_peak_ewma_retries_server_faults_until_the_budget_is_spent() -> None:
    fed = feed("peak-ewma", 2, retries_per_s=0.1, retry_share=0.0)
    assert fed.retry((0, LIMITED)) is None
    assert fed.retry((0, ERROR)) == 0.0
    assert fed.retry((0, ERROR)) is None


# Prequal.


def test_prequal_prefers_the_cold_endpoint_of_least_latency() -> None:
    fed = feed("prequal", 3)
    for endpoint, ttft_s in ((0, 0.9), (1, 0.2), (2, 0.6)):
        fed.attempt(endpoint, OK, 0.0, ttft_s=ttft_s)
    for _ in range(4):
        fed.policy.tick(1.0)
    assert shares(fed, 1.0) == {1: 1.0}


def test_prequal_leaves_a_hot_endpoint_however_fast() -> None:
    fed = feed("prequal", 3, pool=64)
    for endpoint, ttft_s in ((0, 0.9), (1, 0.2), (2, 0.6)):
        fed.attempt(endpoint, OK, 0.0, ttft_s=ttft_s)
    for _ in range(40):
        fed.policy.tick(0.5)
    for number in range(20):
        fed.policy.started(1, f"busy{number}", 0.6)
    for _ in range(2):
        fed.policy.tick(2.0)
    assert 1 not in shares(fed, 2.0)


def test_prequal_is_random_with_fewer_than_two_fresh_probes() -> None:
    fed = feed("prequal", 3)
    for _ in range(4):
        fed.policy.tick(1.0)
    assert shares(fed, 2.1) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3}, abs=0.002)


def test_prequal_shuns_a_fast_failure_and_probes_what_it_no_longer_hears_of() -> None:
    fed = feed("prequal", 2)
    fed.attempt(0, ERROR, 1.0)
    fed.attempt(1, OK, 1.0, ttft_s=2.0)
    for _ in range(4):
        fed.policy.tick(1.0)
    assert shares(fed, 1.0) == {1: 1.0}
    assert list(fed.policy.tick(5.9)) == []
    assert list(fed.policy.tick(6.0)) == [0, 1]
    fed.policy.probed(ended(0, OK, ttft_s=0.3), 6.3)
    for _ in range(4):
        fed.policy.tick(6.5)
    assert shares(fed, 6.5) == {0: 1.0}


def test_prequal_retries_twice_elsewhere() -> None:
    fed = feed("prequal", 2)
    assert fed.chosen(0.0, tried=(0,)) == 1
    assert fed.chosen(0.0, tried=(0, 1)) is None
    assert fed.retry((0, ERROR), (1, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (1, ERROR), (0, ERROR)) is None


# Windows.


def test_a_sliding_count_drops_a_slot_when_its_whole_span_has_passed() -> None:
    count = SlidingCount(30.0)
    count.add(0.5, failed=True)
    count.add(1.5, failed=False, latency_s=0.1)
    count.add(29.5, failed=False, latency_s=0.1)
    assert (count.total, count.failed, count.successes) == (3, 1, 2)
    count.advance(29.99)
    assert count.total == 3
    count.advance(30.0)
    assert (count.total, count.failed) == (2, 0)
    assert count.mean_log == pytest.approx(-2.302585)
    count.advance(1000.0)
    assert (count.total, count.successes) == (0, 0)
