"""The ordered baselines against their published numbers, each at its boundary."""

import pytest

from routing.outcomes import Outcome
from tests.policy_driver import ERROR, LIMITED, OK, Feed, ended, feed


def test_static_stays_with_the_primary_and_never_retries() -> None:
    fed = feed("static")
    fed.attempts(0, ERROR, 50, 1.0)
    assert fed.chosen(1.0) == 0
    assert fed.retry((0, ERROR)) is None


# Consecutive: 3 in a row, checks every 60 s with a timeout of 5 s.


def test_consecutive_leaves_after_the_third_failure_in_a_row() -> None:
    fed = feed("consecutive")
    fed.attempts(0, ERROR, 2, 1.0)
    fed.attempt(0, OK, 1.0)
    fed.attempts(0, ERROR, 2, 1.0)
    assert fed.chosen(1.0) == 0
    fed.attempt(0, LIMITED, 1.0)
    assert fed.chosen(1.0) == 1
    fed.attempt(0, OK, 2.0)
    assert fed.chosen(2.0) == 1, "only a health check brings it back"


def test_consecutive_checks_every_minute_and_returns_on_a_passed_check() -> None:
    fed = feed("consecutive")
    fed.attempts(0, ERROR, 3, 1.0)
    assert list(fed.policy.tick(59.9)) == []
    assert list(fed.policy.tick(60.0)) == [0, 1, 2]
    assert list(fed.policy.tick(119.0)) == []
    assert fed.policy.probe_timeout_s == 5.0
    fed.policy.probed(ended(0, Outcome.TIMEOUT, latency_s=5.0), 65.0)
    assert fed.chosen(65.0) == 1
    fed.policy.probed(ended(0), 120.5)
    assert fed.chosen(120.5) == 0


def test_consecutive_walks_its_chain_once_and_serves_when_all_are_out() -> None:
    fed = feed("consecutive", 2)
    fed.attempts(0, ERROR, 3, 1.0)
    fed.attempts(1, ERROR, 3, 1.0)
    assert fed.chosen(1.0) == 0
    assert fed.chosen(1.0, tried=(0,)) == 1
    assert fed.retry((0, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (1, ERROR)) is None


# LiteLLM: > 50 % of ≥ 5 or > 3 failures in the current minute, at once on some codes, 5 s or Retry-After.


def test_litellm_cools_above_half_of_at_least_five_requests() -> None:
    fed = feed("litellm")
    fed.attempts(0, OK, 2, 10.0)
    fed.attempts(0, ERROR, 2, 10.0)
    assert fed.chosen(10.0) == 0, "2 of 4: too few requests, and not more than half"
    fed.attempt(0, ERROR, 10.0)
    assert fed.chosen(10.0) == 1, "3 of 5 is more than half"
    half = feed("litellm")
    half.attempts(0, OK, 3, 10.0)
    half.attempts(0, ERROR, 3, 10.0)
    assert half.chosen(10.0) == 0, "3 of 6 is half"


def test_litellm_cools_on_the_fourth_failure_of_a_minute_and_no_earlier() -> None:
    fed = feed("litellm")
    fed.attempts(0, OK, 100, 10.0)
    fed.attempts(0, ERROR, 3, 10.0)
    assert fed.chosen(10.0) == 0
    fed.attempt(0, ERROR, 10.0)
    assert fed.chosen(10.0) == 1


def test_litellm_starts_counting_anew_with_the_clock_s_minute() -> None:
    fed = feed("litellm")
    fed.attempts(0, OK, 100, 10.0)
    fed.attempts(0, ERROR, 3, 59.9)
    fed.attempts(0, OK, 100, 60.0)
    fed.attempts(0, ERROR, 3, 60.0)
    assert fed.chosen(60.0) == 0


@pytest.mark.parametrize("outcome", [LIMITED, Outcome.AUTH_ERROR, Outcome.TIMEOUT])
def test_litellm_cools_at_once_for_five_seconds(outcome: Outcome) -> None:
    fed = feed("litellm")
    fed.attempt(0, outcome, 10.0)
    assert fed.chosen(14.999) == 1
    assert fed.chosen(15.0) == 0


def test_litellm_honours_retry_after() -> None:
    fed = feed("litellm")
    fed.attempt(0, LIMITED, 10.0, retry_after_s=42.0)
    assert fed.chosen(51.9) == 1
    assert fed.chosen(52.0) == 0


def test_litellm_refuses_when_every_deployment_cools() -> None:
    fed = feed("litellm", 2)
    fed.attempt(0, LIMITED, 10.0)
    fed.attempt(1, LIMITED, 10.0)
    assert fed.chosen(10.0) is None


def test_litellm_retries_twice_at_once_while_another_deployment_is_ready() -> None:
    fed = feed("litellm")
    assert fed.retry((0, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (1, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (1, ERROR), (2, ERROR)) is None
    assert fed.retry((0, Outcome.CLIENT_ERROR)) is None
    assert fed.retry((0, Outcome.STALLED), ttft_s=0.2) is None, "its stream had begun"


def test_litellm_backs_off_where_nothing_else_is_ready() -> None:
    fed = feed("litellm", 1, retries=6)
    assert fed.retry((0, ERROR), draw=0.0) == 0.5
    assert fed.retry((0, ERROR), draw=0.5) == pytest.approx(0.5 + 0.375)
    assert fed.retry(*[(0, ERROR)] * 2, draw=0.0) == 1.0
    assert fed.retry(*[(0, ERROR)] * 5, draw=0.0) == 8.0
    assert fed.retry(*[(0, ERROR)] * 6, draw=0.0) == 8.0, "never above 8 s"
    assert fed.retry((0, LIMITED), retry_after_s=20.0) == 20.0
    assert fed.retry((0, LIMITED), retry_after_s=61.0, draw=0.0) == 0.5, "a Retry-After above 60 s is not waited for"


# Envoy: 5 × 5xx, sweep 10 s, 30 s × times, one host at least, success rates.


def test_envoy_ejects_on_the_fifth_consecutive_5xx_only() -> None:
    fed = feed("envoy")
    fed.attempts(0, ERROR, 4, 1.0)
    fed.attempt(0, OK, 1.0)
    fed.attempts(0, ERROR, 4, 1.0)
    assert fed.chosen(1.0) == 0
    fed.attempt(0, Outcome.TIMEOUT, 1.0)
    assert fed.chosen(1.0) == 1


def test_envoy_does_not_count_rate_limits_nor_streams_that_broke() -> None:
    fed = feed("envoy")
    fed.attempts(0, LIMITED, 20, 1.0)
    for _ in range(20):
        fed.attempt(0, Outcome.TRUNCATED, 1.0, ttft_s=0.2)
    for _ in range(20):
        fed.attempt(0, Outcome.TIMEOUT, 1.0, ttft_s=0.2)
    assert fed.chosen(1.0) == 0


def test_envoy_returns_by_its_sweep_and_stays_out_longer_each_time() -> None:
    fed = feed("envoy")
    assert fed.policy.tick_s == 10.0
    fed.attempts(0, ERROR, 5, 1.0)
    fed.policy.tick(30.9)
    assert fed.chosen(30.9) == 1
    fed.policy.tick(31.0)
    assert fed.chosen(31.0) == 0
    fed.attempts(0, ERROR, 5, 32.0)
    fed.policy.tick(91.9)
    assert fed.chosen(91.9) == 1, "2 × 30 s"
    fed.policy.tick(92.0)
    assert fed.chosen(92.0) == 0


def test_envoy_s_ejections_are_forgiven_one_per_sweep_and_never_exceed_five_minutes() -> None:
    fed = feed("envoy")
    now = 0.0
    for _ in range(12):
        fed.attempts(0, ERROR, 5, now)
        now += 300.0
        fed.policy.tick(now)
        assert fed.chosen(now) == 0, "at most 300 s"
    for _ in range(12):
        now += 10.0
        fed.policy.tick(now)
    fed.attempts(0, ERROR, 5, now)
    fed.policy.tick(now + 30.0)
    assert fed.chosen(now + 30.0) == 0, "back to 30 s"


def test_envoy_ejects_one_host_at_least_but_no_more_than_a_tenth() -> None:
    fed = feed("envoy", 3)
    fed.attempts(0, ERROR, 5, 1.0)
    fed.attempts(1, ERROR, 5, 1.0)
    assert fed.chosen(1.0) == 1
    both = feed("envoy", 3, max_ejection_share=1.0)
    both.attempts(0, ERROR, 5, 1.0)
    both.attempts(1, ERROR, 5, 1.0)
    assert both.chosen(1.0) == 2
    both.attempts(2, ERROR, 5, 1.0)
    assert both.chosen(1.0) == 0, "panic: everybody is out, the order decides"


@pytest.mark.parametrize(("hosts", "requests", "ejected"), [(6, 100, True), (6, 99, False), (4, 100, False)])
def test_envoy_judges_success_rates_of_enough_hosts_and_requests(hosts: int, requests: int, ejected: bool) -> None:
    fed = feed("envoy", hosts)
    for endpoint in range(hosts):
        for number in range(requests):
            fed.attempt(endpoint, ERROR if endpoint == 0 and number % 2 else OK, 5.0)
    assert fed.chosen(5.0) == 0
    fed.policy.tick(10.0)
    assert fed.chosen(10.0) == (1 if ejected else 0)


def test_envoy_retries_once_with_full_jitter_and_within_the_route_s_timeout() -> None:
    fed = feed("envoy")
    assert fed.retry((0, ERROR), draw=0.0) == 0.0
    assert fed.retry((0, LIMITED), draw=0.8) == pytest.approx(0.02)
    assert fed.chosen(0.0, tried=(0,)) == 1
    assert fed.retry((0, ERROR), (1, ERROR)) is None
    assert fed.retry((0, Outcome.TIMEOUT)) is None
    assert fed.retry((0, ERROR), now=15.0) is None


# Tuned breaker.


def test_the_breaker_ejects_by_error_share_of_enough_requests() -> None:
    fed = feed("tuned-breaker", min_requests=4, error_share=0.5, window_s=30)
    fed.attempt(0, OK, 1.0)
    fed.attempts(0, ERROR, 2, 1.0)
    assert fed.chosen(1.0) == 0, "3 requests are too few"
    fed.attempt(0, OK, 1.0)
    fed.attempt(0, OK, 1.0)
    assert fed.chosen(1.0) == 0, "2 of 5"
    fed.attempt(0, ERROR, 1.0)
    assert fed.chosen(1.0) == 1, "3 of 6"


def test_the_breaker_forgets_what_left_its_window() -> None:
    fed = feed("tuned-breaker", min_requests=4, window_s=30)
    fed.attempts(0, ERROR, 3, 1.0)
    fed.attempt(0, ERROR, 31.5)
    assert fed.chosen(31.5) == 0


def test_the_breaker_ejects_by_latency_against_the_endpoint_s_own_past() -> None:
    fed = feed("tuned-breaker", min_requests=5, latency_ratio=3.0, window_s=30)
    for number in range(100):
        fed.attempt(0, OK, float(number), ttft_s=0.2)
    for _ in range(8):
        fed.attempt(0, OK, 200.0, ttft_s=0.58)
    assert fed.chosen(200.0) == 0, "2.9 ×"
    for _ in range(8):
        fed.attempt(0, OK, 300.0, ttft_s=1.2)
    assert fed.chosen(300.0) == 1


def _after(fed: Feed, now: float, ttft_s: float) -> int | None:
    fed.attempt(0, OK, now, ttft_s=ttft_s)
    return fed.chosen(now)


def test_a_slow_ramp_does_not_become_the_breaker_s_norm() -> None:
    fed = feed("tuned-breaker", min_requests=5, latency_ratio=3.0)
    for second in range(1200):
        fed.attempt(0, OK, float(second), ttft_s=0.2)
    ramp = (1200.0 + second for second in range(600))
    left = next((now for now in ramp if _after(fed, now, 0.2 * 6 ** ((now - 1200.0) / 600.0)) == 1), None)
    assert left is not None, "six times as slow within ten minutes"


def test_the_breaker_lets_one_trial_at_a_time_bring_an_endpoint_back() -> None:
    fed = feed("tuned-breaker", ejection_s=30, successes=2)
    fed.attempts(0, ERROR, 5, 1.0)
    assert fed.chosen(30.9) == 1
    assert fed.chosen(31.0) == 0
    fed.policy.started(0, "trial", 31.0)
    assert fed.chosen(31.1) == 1, "its trial is under way"
    fed.policy.finished(ended(0, OK, "trial"), 31.5)
    assert fed.chosen(31.5) == 0
    fed.attempt(0, ERROR, 32.0)
    assert fed.chosen(61.9) == 1, "a failed trial ejects again"
    fed.attempt(0, OK, 62.0)
    fed.policy.started(0, "second", 62.5)
    assert fed.chosen(62.5) == 1, "the success before the last ejection does not count"
    fed.policy.finished(ended(0, OK, "second"), 62.8)
    fed.policy.started(0, "live", 63.0)
    assert fed.chosen(63.0) == 0, "active again: any number at a time"


def test_the_breaker_judges_a_returned_endpoint_by_new_evidence_only() -> None:
    fed = feed("tuned-breaker", ejection_s=5, successes=1, window_s=60)
    fed.attempts(0, ERROR, 5, 1.0)
    fed.attempt(0, OK, 6.0)
    fed.attempt(0, ERROR, 7.0)
    assert fed.chosen(7.0) == 0


def test_a_slow_trial_of_the_breaker_has_failed() -> None:
    fed = feed("tuned-breaker", ejection_s=30, successes=1, latency_ratio=3.0)
    for number in range(40):
        fed.attempt(0, OK, float(number), ttft_s=0.2)
    fed.attempts(0, ERROR, 40, 40.0)
    assert fed.chosen(69.9) == 1
    fed.attempt(0, OK, 70.0, ttft_s=0.7)
    assert fed.chosen(99.9) == 1
    fed.attempt(0, OK, 100.0, ttft_s=0.5)
    fed.policy.started(0, "live", 101.0)
    assert fed.chosen(101.0) == 0


def test_the_breaker_s_retries_end_and_panic_follows_the_order() -> None:
    fed = feed("tuned-breaker", 2)
    fed.attempts(0, ERROR, 5, 1.0)
    fed.attempts(1, ERROR, 5, 1.0)
    assert fed.chosen(1.0) == 0
    assert fed.chosen(1.0, tried=(0,)) == 1
    assert fed.chosen(1.0, tried=(0, 1)) is None
    assert fed.retry((0, ERROR), (1, ERROR)) == 0.0
    assert fed.retry((0, ERROR), (1, ERROR), (0, ERROR)) is None
