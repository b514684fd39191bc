"""Routecast in the arena is the production engine, driven as the service drives it."""

import pytest

from routing.counts import Counter
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.health import State
from routing.outcomes import Outcome
from routing.policy import AttemptPolicy
from service.probes import _TIMEOUT_S
from sim.policies.routecast import Routecast
from tests.policy_driver import ERROR, LIMITED, OK, Feed, ended, endpoints, request


def built(count: int = 3) -> tuple[Routecast, Feed]:
    policy = Routecast(endpoints(count))
    return policy, Feed(policy)


def test_its_patience_and_its_ticks_are_the_service_s() -> None:
    policy, _ = built()
    assert policy.patience_s(request(), (), 0.0) == AttemptPolicy().ttft_timeout_s
    assert policy.stall_timeout_s == AttemptPolicy().stall_timeout_s
    assert policy.probe_timeout_s == _TIMEOUT_S
    assert policy.tick_s == 0.25


def test_f02_a_short_deadline_is_shared_with_the_fallback() -> None:
    policy, fed = built(2)
    hasty = request(patience_s=6.0)
    assert policy.patience_s(hasty, (), 0.0) == 3.0, "half of it is the fallback's"
    assert policy.patience_s(hasty, (0,), 3.0) == 3.0, "nobody is left"
    assert policy.retry(hasty, [ended(0, Outcome.TIMEOUT, latency_s=3.0)], 3.0, 0.5) == 0.0
    assert policy.retry(hasty, [ended(0, Outcome.TIMEOUT, latency_s=3.0)], 6.0, 0.5) is None
    for _ in range(20):
        fed.attempt(0, Outcome.TIMEOUT, 3.0, latency_s=3.0)
    assert policy.engine.health_of("e0").state is State.UNKNOWN, "the caller was in haste; that is no evidence"
    for _ in range(20):
        fed.attempt(0, Outcome.TIMEOUT, 20.0, latency_s=20.0)
    assert policy.engine.health_of("e0").state is State.EJECTED


def test_f01_failures_that_chance_does_not_explain_move_the_next_request() -> None:
    policy, fed = built()
    fed.attempt(0, ERROR, 1.0)
    assert fed.chosen(1.0) == 0
    fed.attempt(0, ERROR, 1.0)
    assert fed.chosen(1.0) == 1
    assert policy.engine.health_of("e0").state is State.EJECTED


def test_f02_a_retry_goes_on_with_the_endpoints_not_tried() -> None:
    _, fed = built()
    assert fed.retry((0, ERROR)) == 0.0
    assert fed.chosen(0.0, tried=(0,)) == 1
    assert fed.retry((0, ERROR), (1, LIMITED)) == 0.0
    assert fed.chosen(0.0, tried=(0, 1)) == 2
    assert fed.retry((0, ERROR), (1, LIMITED), (2, ERROR)) is None, "all three attempts are used"
    assert fed.chosen(0.0, tried=(0, 1, 2)) is None


def test_f04_what_may_have_run_is_not_run_again() -> None:
    policy, fed = built()
    once = request(idempotent=False)
    assert policy.retry(once, [ended(0, ERROR)], 0.0, 0.5) is None
    assert policy.retry(once, [ended(0, LIMITED)], 0.0, 0.5) == 0.0
    assert fed.retry((0, Outcome.STALLED), ttft_s=0.2) is None, "part of the answer has been sent"
    assert fed.retry((0, ERROR), now=300.0) is None, "the deadline has passed"


def test_a_rate_limit_is_a_pause_as_long_as_the_provider_says() -> None:
    policy, fed = built()
    fed.attempt(0, LIMITED, 1.0, retry_after_s=42.0)
    assert fed.chosen(42.9, draw=0.0) == 1
    policy.tick(43.0)
    assert fed.chosen(43.0, draw=0.0) == 0
    assert policy.engine.health_of("e0").relapses == 0


def test_a_latency_is_learnt_with_a_success_only() -> None:
    policy, fed = built()
    fed.attempt(0, Outcome.TRUNCATED, 1.0, ttft_s=0.01)
    assert policy.engine.window_of("e0").latency_quantile(0.5, 1.0) is None
    fed.attempt(0, OK, 1.0, ttft_s=0.3)
    assert policy.engine.window_of("e0").latency_quantile(0.5, 1.0) == pytest.approx(0.3, rel=0.06)
    assert policy.engine.window_of("e0").sums(1.0, 15)[Counter.GENERATION_S] == pytest.approx(0.2)


def test_f08_probes_and_a_canary_bring_an_endpoint_back() -> None:
    policy, fed = built()
    fed.attempts(0, ERROR, 3, 1.0)
    now, probed = 1.0, 0
    while policy.engine.health_of("e0").state is not State.CANARY:
        now += 0.25
        for endpoint in policy.tick(now):
            policy.probed(ended(endpoint, latency_s=0.1), now + 0.1)
            probed += 1
        assert now < 20.0
    assert probed == 2
    assert fed.chosen(now, draw=0.05) == 0
    assert fed.chosen(now, draw=0.95) == 1
    assert policy.engine.window_of("e0").latency_quantile(0.5, now) is None, "a probe's latency stays out"


def test_a_probe_is_alone_until_it_ends() -> None:
    policy, fed = built()
    fed.attempts(0, ERROR, 3, 0.0)
    sent = [(now / 4, list(policy.tick(now / 4))) for now in range(1, 60)]
    assert [(now, probes) for now, probes in sent if probes] == [(5.0, [0])]
    policy.probed(ended(0, Outcome.TIMEOUT, latency_s=policy.probe_timeout_s), 15.0)
    assert policy.engine.health_of("e0").probe_failures == 1
    assert policy.engine.window_of("e0").in_flight == 0
    assert list(policy.tick(15.0)) == [0]


def test_a_forecaster_may_be_passed_in_and_is_heard_before_each_tick() -> None:
    heard: list[float] = []

    def forecaster(engine: Engine, now: float) -> Forecasts | None:
        heard.append(now)
        risk = 0.9 if engine.window_of("e0").in_flight else 0.1
        return Forecasts(now, "by load", 0.5, {"e0": risk}) if now >= 1.0 else None

    policy = Routecast(endpoints(3), forecaster=forecaster, name="routecast-forecast")
    policy.tick(0.75)
    assert list(policy.warned()) == []
    policy.started(0, "a", 0.8)
    policy.tick(1.0)
    assert heard == [0.75, 1.0]
    assert list(policy.warned()) == [0]
    assert policy.name == "routecast-forecast"
    assert Feed(policy).chosen(1.0, draw=0.95) == 1, "degraded before anything failed"
