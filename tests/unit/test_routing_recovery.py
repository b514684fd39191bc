"""The way back: probes, steps with evidence, and the operator's hand; what is late or lost counts for nothing."""

import pytest

from routing.actions import Action, Finished, Probe
from routing.engine import Engine
from routing.health import Actor, Event, State
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from routing.policy import FailbackKind, FailbackPolicy, Policy
from tests.routing_world import MODEL, bring_to_canary, eject, engine_of, observe, transitions_of

NOW = 1000.0
BLUE_GREEN = Policy(failback=FailbackPolicy(FailbackKind.BLUE_GREEN))
GRADUAL = Policy(failback=FailbackPolicy(FailbackKind.GRADUAL, ramp_step=0.2, step_s=5.0))


def _admission(engine: Engine, name: str = "a") -> float:
    return next(c.facts.admission for c in engine.snapshot.candidates(MODEL) if c.facts.endpoint.id == name)


def _chosen(engine: Engine, now: float) -> str:
    decision = decide(engine.snapshot, RouteRequest(MODEL), now, 0.5)
    return decision.chosen.facts.endpoint.id if decision.chosen else ""


def _probes(actions: list[Action]) -> int:
    return sum(isinstance(action, Probe) for action in actions)


def _ejected(policy: Policy | None = None) -> Engine:
    engine = engine_of("a", "b", policy=policy, now=NOW)
    eject(engine, "a", NOW)
    return engine


def test_f08_an_ejected_endpoint_is_probed_after_its_time_and_one_probe_at_a_time() -> None:
    engine = _ejected()
    assert engine.tick(NOW + 4.9) == []
    actions = engine.tick(NOW + 5.0)
    assert [t.event for t in transitions_of(actions)] == [Event.EJECTION_OVER]
    assert [action.endpoint.id for action in actions if isinstance(action, Probe)] == ["a"]
    assert [a for second in range(6, 35) for a in engine.tick(NOW + second)] == [], "one that is out is enough"
    assert [type(action) for action in engine.tick(NOW + 35.0)] == [Probe], "one that was never reported is lost"


def test_f08_answered_probes_follow_at_their_interval() -> None:
    engine = _ejected()
    engine.tick(NOW + 5)
    engine.probed(Finished("a", "p", Outcome.OK), NOW + 5.5)
    assert engine.tick(NOW + 6.9) == []
    assert _probes(engine.tick(NOW + 7.0)) == 1


def test_f15_a_failed_probe_is_no_new_ejection_but_the_count_starts_again_and_the_pause_grows() -> None:
    engine = _ejected()
    held_until = engine.health_of("a").held_until
    engine.tick(NOW + 5)
    assert engine.probed(Finished("a", "p1", Outcome.OK), NOW + 5.1) == []
    assert engine.probed(Finished("a", "p2", Outcome.TIMEOUT), NOW + 7.1) == []
    health = engine.health_of("a")
    assert (health.state, health.probes_passed, health.held_until) == (State.PROBING, 0, held_until)
    assert [_probes(engine.tick(NOW + s)) for s in (7.9, 8.0)] == [0, 1], "three seconds instead of two"
    assert engine.probed(Finished("a", "p3", Outcome.OK), NOW + 8.1) == []
    (passed,) = transitions_of(engine.probed(Finished("a", "p4", Outcome.OK), NOW + 10.1))
    assert (passed.to_state, passed.cause.value, passed.cause.threshold) == (State.CANARY, 2.0, 2.0)


def test_f08_an_endpoint_that_is_dead_for_days_is_probed_on_and_returns_within_a_minute() -> None:
    engine, now = _ejected(), NOW
    probes = 0
    for second in range(4 * 86_400 // 15):
        now = NOW + 15.0 * second
        for _ in range(_probes(engine.tick(now))):
            probes += 1
            engine.probed(Finished("a", "p", Outcome.CONNECT_ERROR), now + 0.1)
    assert probes > 20_000
    assert len(engine.health_of("a").reasons) == 0
    back = now
    while engine.health_of("a").state is State.PROBING:
        back += 1
        for _ in range(_probes(engine.tick(back))):
            engine.probed(Finished("a", "p", Outcome.OK), back + 0.1)
    assert back - now < 60


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_ERROR, Outcome.OK])
def test_f08_a_provider_that_refuses_the_probe_itself_is_not_locked_out(outcome: Outcome) -> None:
    engine = _ejected()
    engine.tick(NOW + 5)
    actions = [a for i in range(2) for a in engine.probed(Finished("a", f"p{i}", outcome), NOW + 6)]
    assert [t.to_state for t in transitions_of(actions)] == [State.CANARY]


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.UNSUPPORTED, Outcome.RATE_LIMITED])
def test_a_probe_that_says_nothing_neither_passes_nor_fails(outcome: Outcome) -> None:
    engine = _ejected()
    engine.tick(NOW + 5)
    engine.probed(Finished("a", "p1", Outcome.OK), NOW + 6)
    engine.probed(Finished("a", "p2", outcome, retry_after_s=9.0), NOW + 7)
    health = engine.health_of("a")
    assert (health.state, health.probes_passed, health.probe_failures) == (State.PROBING, 1, 0)


def test_f17_a_probe_that_meets_a_rate_limit_waits_for_its_end() -> None:
    engine = _ejected()
    engine.tick(NOW + 5)
    engine.probed(Finished("a", "p", Outcome.RATE_LIMITED, retry_after_s=20.0), NOW + 6)
    assert [_probes(engine.tick(NOW + s)) for s in (10.0, 25.9, 26.0)] == [0, 0, 1]


def test_f15_a_probe_sent_before_the_probing_began_proves_nothing() -> None:
    engine = _ejected()
    engine.started("a", "early", NOW + 4)
    engine.tick(NOW + 5)
    engine.probed(Finished("a", "early", Outcome.OK), NOW + 5.5)
    assert engine.health_of("a").probes_passed == 0


def test_f15_a_canary_rolls_back_on_a_breach_and_is_held_twice_as_long() -> None:
    engine = _ejected()
    bring_to_canary(engine, "a", NOW + 5)
    assert _admission(engine) == 0.1
    rollback = eject(engine, "a", NOW + 8)
    assert (rollback.from_state, rollback.to_state) == (State.CANARY, State.EJECTED)
    assert engine.health_of("a").held_until == NOW + 8 + 10


def test_f15_a_canary_that_fails_within_seconds_of_its_probes_rolls_back_on_evidence() -> None:
    engine = _ejected()
    bring_to_canary(engine, "a", NOW + 5)
    for _ in range(2):
        assert observe(engine, "a", Outcome.SERVER_ERROR, NOW + 6) == []
    (rollback,) = transitions_of(observe(engine, "a", Outcome.SERVER_ERROR, NOW + 6))
    assert (rollback.to_state, rollback.cause.metric) == (State.EJECTED, "failure_evidence")


def test_f15_failures_of_attempts_sent_before_the_return_do_not_count_against_it() -> None:
    engine = engine_of("a", "b", now=NOW)
    for i in range(6):
        engine.started("a", f"old{i}", NOW)
    eject(engine, "a", NOW + 1)
    bring_to_canary(engine, "a", NOW + 6)
    for i in range(6):
        assert engine.finished(Finished("a", f"old{i}", Outcome.TIMEOUT), NOW + 20) == []
    health = engine.health_of("a")
    assert (health.state, health.step_failures) == (State.CANARY, 0)
    assert engine.window_of("a").sums(NOW + 20, 1).failures == 6, "history keeps them"


def test_f15_successes_of_attempts_sent_before_the_return_do_not_count_for_it() -> None:
    engine = engine_of("a", "b", now=NOW)
    for i in range(6):
        engine.started("a", f"old{i}", NOW)
    eject(engine, "a", NOW + 1)
    bring_to_canary(engine, "a", NOW + 6)
    for i in range(6):
        engine.finished(Finished("a", f"old{i}", Outcome.OK), NOW + 7)
    assert transitions_of(engine.tick(NOW + 12)) == []


def test_f15_a_failure_in_a_step_must_be_outweighed_before_the_next() -> None:
    engine = _ejected()
    bring_to_canary(engine, "a", NOW + 5)
    for outcome in [Outcome.OK] * 4 + [Outcome.SERVER_ERROR] + [Outcome.OK] * 3:
        observe(engine, "a", outcome, NOW + 8)
    assert transitions_of(engine.tick(NOW + 20)) == [], "seven of eight may still be 34 % failures"
    observe(engine, "a", Outcome.OK, NOW + 20)
    (step,) = transitions_of(engine.tick(NOW + 21))
    assert (step.event, step.cause.metric) == (Event.STEP_PROVEN, "failure_rate_bound")
    assert _admission(engine) == 0.3


def _climb(engine: Engine, now: float) -> list[float]:
    """Let the return succeed, one step per tick; return the admission before each."""
    admissions = []
    while engine.health_of("a").state is State.CANARY:
        admissions.append(_admission(engine))
        for _ in range(5):
            observe(engine, "a", Outcome.OK, now)
        now += engine.policy.failback.step_s
        engine.tick(now)
    return admissions


def test_f15_a_gradual_return_climbs_step_by_step() -> None:
    engine = _ejected(GRADUAL)
    bring_to_canary(engine, "a", NOW + 5)
    assert _climb(engine, NOW + 5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert (engine.health_of("a").state, _admission(engine)) == (State.ACTIVE, 1.0)


def test_f15_a_gradual_return_that_fails_half_way_starts_again_from_nothing() -> None:
    engine = _ejected(GRADUAL)
    bring_to_canary(engine, "a", NOW + 5)
    for step in (1, 2):
        for _ in range(5):
            observe(engine, "a", Outcome.OK, NOW + 5 * step)
        engine.tick(NOW + 5 + 5 * step)
    assert _admission(engine) == pytest.approx(0.6)
    eject(engine, "a", NOW + 18)
    assert _admission(engine) == 0.0
    bring_to_canary(engine, "a", NOW + 28)
    assert _admission(engine) == pytest.approx(0.2)


def test_f15_blue_green_waits_for_all_its_probes_then_switches_at_once() -> None:
    engine = _ejected(BLUE_GREEN)
    engine.tick(NOW + 5)
    for i in range(4):
        assert engine.probed(Finished("a", f"p{i}", Outcome.OK), NOW + 6 + i) == []
        assert _chosen(engine, NOW + 6 + i) == "b"
    (validated,) = transitions_of(engine.probed(Finished("a", "p4", Outcome.OK), NOW + 10))
    assert (validated.event, validated.cause.value, validated.cause.threshold) == (Event.PROBES_PASSED, 5.0, 5.0)
    assert (_chosen(engine, NOW + 10), _admission(engine)) == ("a", 1.0)
    (done,) = transitions_of(engine.tick(NOW + 11))
    assert (done.event, done.to_state) == (Event.PLAN_DONE, State.ACTIVE)


def test_f15_one_failed_validation_keeps_blue_green_from_switching() -> None:
    engine = _ejected(BLUE_GREEN)
    engine.tick(NOW + 5)
    outcomes = [Outcome.OK] * 4 + [Outcome.SERVER_ERROR] + [Outcome.OK] * 4
    for i, outcome in enumerate(outcomes):
        assert engine.probed(Finished("a", f"p{i}", outcome), NOW + 6 + i) == []
    assert (engine.health_of("a").state, _chosen(engine, NOW + 20)) == (State.PROBING, "b")
    assert [t.to_state for t in transitions_of(engine.probed(Finished("a", "p9", Outcome.OK), NOW + 20))] == [
        State.CANARY
    ]


def test_f15_a_return_without_traffic_is_proven_by_probes_alone() -> None:
    engine, now, events = _ejected(), NOW, []
    while engine.health_of("a").state is not State.ACTIVE:
        now += 1
        assert now < NOW + 120
        actions = engine.tick(now)
        for _ in range(_probes(actions)):
            engine.started("a", "p", now)
            actions += engine.probed(Finished("a", "p", Outcome.OK), now + 0.1)
        events += [t.event for t in transitions_of(actions)]
    assert events == [Event.EJECTION_OVER, Event.PROBES_PASSED, Event.STEP_PROVEN, Event.PLAN_DONE]


@pytest.mark.parametrize("outcome", [Outcome.OK, Outcome.CONNECT_ERROR, Outcome.RATE_LIMITED])
def test_f21_a_drained_endpoint_gets_nothing_whatever_its_last_requests_answer(outcome: Outcome) -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.OK, NOW)
    engine.started("a", "in flight", NOW)
    (drained,) = transitions_of(engine.drain("a", "kim: maintenance", NOW + 1))
    assert (drained.to_state, drained.actor, drained.note) == (State.DRAINING, Actor.OPERATOR, "kim: maintenance")
    assert (_chosen(engine, NOW + 1), _admission(engine)) == ("b", 0.0)
    assert engine.finished(Finished("a", "in flight", outcome), NOW + 60) == []
    assert [a for second in range(61, 4000, 7) for a in engine.tick(NOW + second)] == []
    assert (engine.health_of("a").state, engine.drain("a", "kim: again", NOW + 4000)) == (State.DRAINING, [])


def test_f21_a_restored_endpoint_earns_its_traffic_as_after_an_outage() -> None:
    engine = engine_of("a", "b", now=NOW)
    observe(engine, "a", Outcome.OK, NOW)
    engine.drain("a", "kim: maintenance", NOW)
    (restored,) = transitions_of(engine.restore("a", "kim: done", NOW + 600))
    assert (restored.to_state, restored.actor, restored.note) == (State.PROBING, Actor.OPERATOR, "kim: done")
    assert _chosen(engine, NOW + 600) == "b"
    assert _probes(engine.tick(NOW + 601)) == 1
    bring_to_canary(engine, "a", NOW + 602)
    assert _climb(engine, NOW + 602) == [0.1, 0.3]
    assert engine.health_of("a").relapses == 0, "an operator's hand is no relapse"


def test_f21_restoring_what_was_not_drained_changes_nothing() -> None:
    engine = engine_of("a", now=NOW)
    version = engine.snapshot.version
    assert engine.restore("a", "kim", NOW) == []
    assert (engine.health_of("a").state, engine.snapshot.version) == (State.UNKNOWN, version)


@pytest.mark.parametrize("start", [State.UNKNOWN, State.DEGRADED, State.EJECTED, State.PROBING, State.CANARY])
def test_f21_whatever_state_it_was_in_a_drained_endpoint_returns_through_probes(start: State) -> None:
    engine = engine_of("a", "b", now=NOW)
    if start is State.DEGRADED:
        engine.finished(Finished("a", "x", Outcome.RATE_LIMITED, retry_after_s=1.0), NOW)
    elif start is not State.UNKNOWN:
        eject(engine, "a", NOW)
    if start is State.PROBING:
        engine.tick(NOW + 5)
    elif start is State.CANARY:
        bring_to_canary(engine, "a", NOW + 5)
    assert engine.health_of("a").state is start
    engine.drain("a", "kim", NOW + 10)
    engine.restore("a", "kim", NOW + 20)
    bring_to_canary(engine, "a", NOW + 23)
    assert _climb(engine, NOW + 40) == [0.1, 0.3]
