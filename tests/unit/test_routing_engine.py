"""The engine: what it learns is in the snapshot before the next decision, and every change tells its cause."""

import pytest

from routing.engine import Engine, Finished, Forecasts, Probe
from routing.errors import CatalogueError, UnknownEndpointError, UnknownModelError
from routing.health import Actor, Event, State
from routing.model import Catalogue, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from routing.policy import ForecastPolicy, Policy
from tests.routing_world import MODEL, endpoint, engine_of, observe, transitions_of

NOW = 1000.0


def _chosen(engine: Engine, now: float, draw: float = 0.5) -> str:
    decision = decide(engine.snapshot, RouteRequest(MODEL), now, draw)
    return decision.chosen.facts.endpoint.id if decision.chosen else ""


def _forecast(time: float, **risks: float) -> Forecasts:
    return Forecasts(time, "hgb-7", 0.4, risks)


def test_f01_an_ejection_is_visible_to_the_very_next_decision() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    before = engine.snapshot
    assert _chosen(engine, NOW) == "primary"
    for _ in range(2):
        assert observe(engine, "primary", Outcome.SERVER_ERROR, NOW + 1) == []
    (transition,) = transitions_of(observe(engine, "primary", Outcome.SERVER_ERROR, NOW + 1))
    assert _chosen(engine, NOW + 1) == "secondary"
    assert (transition.from_state, transition.to_state, transition.actor) == (State.ACTIVE, State.EJECTED, Actor.REFLEX)
    assert transition.cause.metric == "consecutive_failures"
    assert engine.snapshot.version > before.version
    assert before.candidates(MODEL)[0].facts.state is State.ACTIVE, "a snapshot in someone's hands never changes"


def test_one_success_proves_a_new_endpoint() -> None:
    engine = engine_of("a")
    assert engine.health_of("a").state is State.UNKNOWN
    (transition,) = transitions_of(observe(engine, "a", Outcome.OK, NOW))
    assert (transition.event, transition.to_state) == (Event.PROVEN, State.ACTIVE)


@pytest.mark.parametrize("outcome", [Outcome.AUTH_ERROR, Outcome.CLIENT_ERROR, Outcome.CANCELLED])
def test_what_says_nothing_of_the_endpoint_changes_nothing(outcome: Outcome) -> None:
    engine = engine_of("a", now=NOW)
    version = engine.snapshot.version
    for i in range(50):
        assert observe(engine, "a", outcome, NOW + i) == []
    assert (engine.health_of("a").state, engine.snapshot.version) == (State.UNKNOWN, version)


def test_f17_a_429_blocks_the_endpoint_at_once_and_lets_it_return_by_its_quota() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    engine.started("primary", "a", NOW)
    (transition,) = transitions_of(
        engine.finished(Finished("primary", "a", Outcome.RATE_LIMITED, retry_after_s=5), NOW)
    )
    assert (transition.event, transition.to_state) == (Event.LIMITED, State.DEGRADED)
    assert _chosen(engine, NOW + 4.9, draw=0.0) == "secondary"
    assert _chosen(engine, NOW + 5.0, draw=0.49) == "primary"
    assert _chosen(engine, NOW + 5.0, draw=0.51) == "secondary"
    events = [t.event for second in range(15) for t in transitions_of(engine.tick(NOW + second))]
    assert events == [Event.RELIEVED]


def test_f09_a_forecast_degrades_and_returns_with_hysteresis() -> None:
    engine = engine_of("primary", "secondary", now=NOW)
    observe(engine, "primary", Outcome.OK, NOW)
    assert engine.forecast(_forecast(NOW, primary=0.39), NOW) == []
    (transition,) = transitions_of(engine.forecast(_forecast(NOW, primary=0.4), NOW))
    assert (transition.event, transition.actor, transition.cause.metric) == (Event.FORECAST, Actor.FORECAST, "risk")
    assert (transition.cause.value, transition.cause.threshold) == (0.4, 0.4)
    assert _chosen(engine, NOW) == "secondary"
    for second in range(1, 40):
        engine.forecast(_forecast(NOW + second, primary=0.3), NOW + second)
        assert transitions_of(engine.tick(NOW + second)) == [], "below the threshold is not yet below the exit"
    engine.forecast(_forecast(NOW + 40, primary=0.19), NOW + 40)
    (calm,) = transitions_of(engine.tick(NOW + 40))
    assert (calm.event, calm.to_state) == (Event.CALM, State.CANARY)


def test_f06_a_degraded_endpoint_stays_so_for_the_minimum_hold() -> None:
    engine = engine_of("a", now=NOW)
    engine.forecast(_forecast(NOW, a=0.9), NOW)
    hold_s = engine.policy.failback.min_hold_s
    engine.forecast(_forecast(NOW + 1, a=0.0), NOW + 1)
    assert transitions_of(engine.tick(NOW + hold_s - 0.1)) == []
    assert [t.event for t in transitions_of(engine.tick(NOW + hold_s))] == [Event.CALM]


def test_f20_a_forecast_that_stopped_coming_is_no_reason_any_more() -> None:
    engine = engine_of("a", now=NOW)
    engine.forecast(_forecast(NOW, a=0.9), NOW)
    engine.tick(NOW + 1)
    assert engine.snapshot.candidates(MODEL)[0].facts.risk == 0.9
    engine.tick(NOW + engine.policy.forecast.max_age_s + 0.1)
    facts = engine.snapshot.candidates(MODEL)[0].facts
    assert (facts.risk, engine.snapshot.forecaster) == (None, "")
    assert [t.event for t in transitions_of(engine.tick(NOW + 30))] == [Event.CALM]


def test_f09_the_policy_s_threshold_overrides_the_model_s() -> None:
    policy = Policy(forecast=ForecastPolicy(threshold=0.8))
    engine = engine_of("a", policy=policy, now=NOW)
    assert engine.forecast(_forecast(NOW, a=0.79), NOW) == []
    assert engine.thresholds()["forecast.threshold"] == 0.8
    assert engine_of("a").thresholds()["forecast.threshold"] is None


def test_a_forecast_of_an_endpoint_that_left_the_catalogue_is_ignored() -> None:
    assert engine_of("a").forecast(_forecast(0.0, gone=0.99), 0.0) == []


@pytest.mark.parametrize("trouble", ["forecast", "outage"])
def test_f07_a_single_endpoint_stays_in_use(trouble: str) -> None:
    engine = engine_of("only", now=NOW)
    if trouble == "forecast":
        engine.forecast(_forecast(NOW, only=0.99), NOW)
    else:
        observe(engine, "only", Outcome.CONNECT_ERROR, NOW)
    assert engine.health_of("only").state in (State.DEGRADED, State.EJECTED)
    assert _chosen(engine, NOW) == "only"


def test_f08_an_ejected_endpoint_is_probed_after_its_time_and_spaced() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.CONNECT_ERROR, NOW)
    assert engine.tick(NOW + 4.9) == []
    actions = engine.tick(NOW + 5.0)
    assert [t.event for t in transitions_of(actions)] == [Event.EJECTION_OVER]
    assert [action.endpoint.id for action in actions if isinstance(action, Probe)] == ["a"]
    assert engine.tick(NOW + 6.0) == []
    assert [type(action) for action in engine.tick(NOW + 7.0)] == [Probe]


def test_f08_probes_open_the_canary_and_one_failure_ejects_again() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.CONNECT_ERROR, NOW)
    engine.tick(NOW + 5)
    assert engine.probed(Finished("a", "p1", Outcome.OK), NOW + 6) == []
    (failed,) = transitions_of(engine.probed(Finished("a", "p2", Outcome.TIMEOUT), NOW + 7))
    assert (failed.to_state, failed.cause.metric) == (State.EJECTED, "probe_timeout")
    engine.tick(NOW + 17)
    assert engine.probed(Finished("a", "p3", Outcome.OK), NOW + 18) == []
    (passed,) = transitions_of(engine.probed(Finished("a", "p4", Outcome.OK), NOW + 19))
    assert (passed.to_state, passed.cause.value, passed.cause.threshold) == (State.CANARY, 2.0, 2.0)


def test_f08_a_provider_that_refuses_the_probe_itself_is_not_locked_out() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.CONNECT_ERROR, NOW)
    engine.tick(NOW + 5)
    actions = [a for i in range(2) for a in engine.probed(Finished("a", f"p{i}", Outcome.CLIENT_ERROR), NOW + 6)]
    assert [t.to_state for t in transitions_of(actions)] == [State.CANARY]


def test_f15_a_canary_rolls_back_on_a_breach() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.CONNECT_ERROR, NOW)
    engine.tick(NOW + 5)
    for i in range(2):
        engine.probed(Finished("a", f"p{i}", Outcome.OK), NOW + 6)
    assert engine.snapshot.candidates(MODEL)[0].facts.admission == 0.1
    (rollback,) = transitions_of(observe(engine, "a", Outcome.CONNECT_ERROR, NOW + 7))
    assert (rollback.from_state, rollback.to_state) == (State.CANARY, State.EJECTED)
    assert engine.health_of("a").ejected_until == NOW + 7 + 10


def test_f15_a_failure_sends_a_canary_step_back_to_its_first_success() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.CONNECT_ERROR, NOW)
    engine.tick(NOW + 5)
    for i in range(2):
        engine.probed(Finished("a", f"p{i}", Outcome.OK), NOW + 6)
    for outcome in [Outcome.OK] * 4 + [Outcome.SERVER_ERROR] + [Outcome.OK] * 4:
        observe(engine, "a", outcome, NOW + 8)
    assert transitions_of(engine.tick(NOW + 20)) == []
    observe(engine, "a", Outcome.OK, NOW + 20)
    assert [t.event for t in transitions_of(engine.tick(NOW + 21))] == [Event.STEP_PROVEN]


def test_one_model_s_trouble_leaves_the_others_alone() -> None:
    catalogue = Catalogue.of([endpoint("a"), endpoint("b", model="other")])
    assert [e.id for e in catalogue.endpoints_for("other")] == ["b"]
    with pytest.raises(UnknownModelError, match="known models: openai/gpt-4, other"):
        catalogue.endpoints_for("third")
    with pytest.raises(CatalogueError, match="'a' is declared twice"):
        Catalogue.of([endpoint("a"), endpoint("a")])


def test_an_unknown_endpoint_is_named() -> None:
    engine = engine_of("a")
    calls = (
        lambda: engine.started("gone", "x", NOW),
        lambda: engine.first_byte("gone", "x"),
        lambda: engine.finished(Finished("gone", "x", Outcome.OK), NOW),
        lambda: engine.probed(Finished("gone", "x", Outcome.OK), NOW),
        lambda: engine.health_of("gone"),
        lambda: engine.catalogue.endpoint("gone"),
    )
    for call in calls:
        with pytest.raises(UnknownEndpointError, match="unknown endpoint 'gone'"):
            call()
