"""A return takes evidence and time; ejections grow with recent ones and are forgiven one by one."""

import pytest

from routing import failback
from routing.health import Event, Health, State
from routing.policy import FailbackPolicy, ReflexPolicy

REFLEX = ReflexPolicy(ejection_s=5.0, max_ejection_s=60.0, forgive_s=100.0)
PLAN = FailbackPolicy(steps=(0.1, 0.4), step_successes=5, step_s=10.0, degraded_share=0.2)


def test_f06_each_recent_ejection_doubles_the_next_up_to_the_limit() -> None:
    health, lengths = Health("a"), []
    for now in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0):
        failback.start_ejection(health, REFLEX, now)
        lengths.append(health.ejected_until - now)
    assert lengths == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_f06_a_quiet_time_takes_one_doubling_back() -> None:
    health = Health("a")
    failback.start_ejection(health, REFLEX, 0.0)
    failback.start_ejection(health, REFLEX, 0.0)
    health.state = State.ACTIVE
    failback.forgive(health, REFLEX, 109.9)
    assert health.ejections == 2
    failback.forgive(health, REFLEX, 110.0)
    failback.forgive(health, REFLEX, 110.0)
    assert health.ejections == 1
    failback.forgive(health, REFLEX, 210.0)
    failback.forgive(health, REFLEX, 900.0)
    assert health.ejections == 0


@pytest.mark.parametrize("state", set(State) - {State.ACTIVE})
def test_only_an_active_endpoint_is_forgiven(state: State) -> None:
    health = Health("a", state=state, ejections=1)
    failback.forgive(health, REFLEX, 1e9)
    assert health.ejections == 1


@pytest.mark.parametrize(("successes", "after_s", "earned"), [(4, 99.0, False), (5, 9.9, False), (5, 10.0, True)])
def test_f15_a_step_needs_evidence_and_time(successes: int, after_s: float, earned: bool) -> None:
    health = Health("a", state=State.CANARY, step_since=50.0, step_successes=successes)
    found = failback.step_evidence(health, PLAN, 50.0 + after_s)
    assert (found is not None) == earned
    if found:
        assert (found[0], found[1].value, found[1].threshold) == (Event.STEP_PROVEN, 5.0, 5.0)


def test_f15_the_last_step_ends_the_plan() -> None:
    health = Health("a", state=State.CANARY)
    failback.start_canary(health, 0.0)
    failback.advance(health, PLAN, 10.0)
    assert (health.step, health.step_since, health.step_successes) == (1, 10.0, 0)
    health.step_successes = 5
    found = failback.step_evidence(health, PLAN, 20.0)
    assert found is not None
    assert found[0] is Event.PLAN_DONE


def test_a_canary_begins_with_a_clean_slate() -> None:
    health = Health("a", step=1, step_successes=9, reasons={Event.SLOW})
    failback.start_canary(health, 70.0)
    assert (health.step, health.step_successes, health.evidence_from, health.reasons) == (0, 0, 70.0, set())


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (State.UNKNOWN, 1.0),
        (State.ACTIVE, 1.0),
        (State.EJECTED, 0.0),
        (State.PROBING, 0.0),
        (State.CANARY, 0.4),
    ],
)
def test_what_each_state_admits(state: State, share: float) -> None:
    assert failback.admission(Health("a", state=state, step=1), PLAN) == share


@pytest.mark.parametrize(("event", "share"), [(Event.SLOW, 0.2), (Event.FORECAST, 0.2), (Event.LIMITED, 1.0)])
def test_a_quota_alone_leaves_the_share_to_the_quota(event: Event, share: float) -> None:
    health = Health("a", state=State.DEGRADED)
    failback.start_degraded(health, event)
    assert failback.admission(health, PLAN) == share
