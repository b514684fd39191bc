"""A return takes evidence and time; holds grow with recent relapses, which are forgiven one by one."""

from math import comb

import pytest

from routing import failback
from routing.health import Cause, Event, Health, State
from routing.policy import FailbackKind, FailbackPolicy, ReflexPolicy

REFLEX = ReflexPolicy(ejection_s=5.0, max_ejection_s=60.0, forgive_s=100.0)
PLAN = FailbackPolicy(steps=(0.1, 0.4), step_s=10.0, degraded_share=0.2, min_hold_s=15.0, max_hold_s=50.0)
GREEN = FailbackPolicy(FailbackKind.BLUE_GREEN, validation_probes=5)


def _doubt(health: Health, now: float, event: Event = Event.SLOW) -> None:
    failback.start_doubt(health, event, PLAN, REFLEX, now)


def test_f06_each_relapse_doubles_the_next_ejection_up_to_the_limit() -> None:
    health, lengths = Health("a"), []
    for now in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0):
        failback.start_ejection(health, REFLEX, now)
        lengths.append(health.held_until - now)
    assert lengths == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_f06_each_relapse_doubles_the_next_degradation_up_to_the_limit() -> None:
    health, lengths = Health("a"), []
    for now in (0.0, 100.0, 200.0, 300.0):
        _doubt(health, now)
        lengths.append(health.held_until - now)
    assert lengths == [15.0, 30.0, 50.0, 50.0]


def test_f06_ejections_and_degradations_are_relapses_of_one_endpoint() -> None:
    health = Health("a")
    _doubt(health, 0.0)
    failback.start_ejection(health, REFLEX, 100.0)
    assert health.held_until == 110.0
    _doubt(health, 200.0)
    assert health.held_until == 250.0


def test_f06_a_forecast_that_interrupts_a_return_makes_it_wait_and_is_no_relapse() -> None:
    health, lengths = Health("a"), []
    _doubt(health, 0.0)
    for now in (100.0, 200.0, 300.0):
        _doubt(health, now, Event.FORECAST)
        lengths.append(health.held_until - now)
    assert lengths == [30.0, 30.0, 30.0]
    assert (health.relapses, health.forgiven_at, health.was_doubted) == (1, 115.0, True)


def test_f17_a_rate_limit_is_no_relapse() -> None:
    health = Health("a")
    failback.start_limited(health)
    assert (health.relapses, health.held_until, health.was_doubted, health.reasons) == (0, 0.0, False, {Event.LIMITED})


def test_an_endpoint_that_was_never_well_again_for_days_keeps_the_longest_hold() -> None:
    health = Health("a")
    for day in range(5000):
        failback.start_ejection(health, REFLEX, day * 1000.0)
    assert health.held_until == 4999 * 1000.0 + 60.0


def test_f06_a_quiet_time_takes_one_doubling_back() -> None:
    health = Health("a")
    failback.start_ejection(health, REFLEX, 0.0)
    failback.start_ejection(health, REFLEX, 0.0)
    health.state = State.ACTIVE
    failback.forgive(health, REFLEX, 109.9)
    assert health.relapses == 2
    failback.forgive(health, REFLEX, 110.0)
    failback.forgive(health, REFLEX, 110.0)
    assert health.relapses == 1
    failback.forgive(health, REFLEX, 210.0)
    failback.forgive(health, REFLEX, 900.0)
    assert health.relapses == 0


@pytest.mark.parametrize("state", [state for state in State if state is not State.ACTIVE])
def test_only_an_active_endpoint_is_forgiven(state: State) -> None:
    health = Health("a", state=state, relapses=1)
    failback.forgive(health, REFLEX, 1e9)
    assert health.relapses == 1


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("failures", "attempts"), [(0, 1), (0, 5), (1, 8), (3, 40), (40, 500), (499, 500)])
def test_f15_the_bound_on_the_failure_rate_is_exact(failures: int, attempts: int, confidence: float) -> None:
    """By its definition: at the bound, so few failures would come with probability 1 − confidence."""
    bound = failback.failure_rate_bound(failures, attempts, confidence)
    so_few = sum(comb(attempts, k) * bound**k * (1 - bound) ** (attempts - k) for k in range(failures + 1))
    assert so_few == pytest.approx(1 - confidence, abs=0.02)
    assert failures / attempts < bound < 1


@pytest.mark.parametrize("attempts", [0, 1, 7])
def test_f15_nothing_but_failures_bounds_nothing(attempts: int) -> None:
    assert failback.failure_rate_bound(attempts, attempts, 0.8) == 1.0


@pytest.mark.parametrize(
    ("successes", "failures", "after_s", "earned"),
    [
        (0, 0, 999.0, False),
        (4, 0, 99.0, False),
        (5, 0, 9.9, False),
        (5, 0, 10.0, True),
        (7, 1, 10.0, False),
        (9, 1, 10.0, True),
        (30, 15, 99.0, False),
        (3, 30, 99.0, False),
    ],
)
def test_f15_a_step_needs_evidence_and_time(successes: int, failures: int, after_s: float, earned: bool) -> None:
    health = Health("a", state=State.CANARY, step_since=50.0, step_successes=successes, step_failures=failures)
    found = failback.step_evidence(health, PLAN, 50.0 + after_s, 0)
    assert (found is not None) == earned
    if found:
        event, cause = found
        assert (event, cause.metric, cause.threshold) == (Event.STEP_PROVEN, "failure_rate_bound", 0.3)
        assert cause.value == failback.failure_rate_bound(failures, successes + failures, 0.8) <= 0.3


@pytest.mark.parametrize(("overdue", "earned"), [(0, True), (1, False), (2, False)])
def test_f15_what_is_overdue_counts_against_the_step_until_it_ends(overdue: int, earned: bool) -> None:
    """Short answers end first, so a provider whose streams crawl would look well by them alone."""
    health = Health("a", state=State.CANARY, step_since=50.0, step_successes=6)
    found = failback.step_evidence(health, PLAN, 80.0, overdue)
    assert (found is not None) == earned


def test_f15_the_last_step_ends_the_plan() -> None:
    health = Health("a", state=State.CANARY)
    failback.start_canary(health, 0.0)
    failback.advance(health, 10.0)
    assert (health.step, health.step_since, health.step_successes, health.step_failures) == (1, 10.0, 0, 0)
    health.step_successes = 5
    found = failback.step_evidence(health, PLAN, 20.0, 0)
    assert found is not None
    assert found[0] is Event.PLAN_DONE


def test_f15_blue_green_returns_at_once_after_its_probes() -> None:
    health = Health("a", state=State.CANARY, probes_passed=5)
    assert failback.admission(health, GREEN) == 1.0
    found = failback.step_evidence(health, GREEN, 0.0, 0)
    assert found == (Event.PLAN_DONE, Cause("probes_passed", 5.0, 5.0))


def test_f15_a_gradual_return_climbs_by_small_steps() -> None:
    gradual, health, shares = FailbackPolicy(FailbackKind.GRADUAL, ramp_step=0.25), Health("a", state=State.CANARY), []
    failback.start_canary(health, 0.0)
    for step in range(1, 4):
        shares.append(failback.admission(health, gradual))
        health.step_successes = 5
        found = failback.step_evidence(health, gradual, gradual.step_s * step, 0)
        assert found is not None
        assert found[0] is (Event.PLAN_DONE if step == 3 else Event.STEP_PROVEN)
        failback.advance(health, gradual.step_s * step)
    assert shares == [0.25, 0.5, 0.75]


def test_a_canary_begins_with_a_clean_slate() -> None:
    health = Health("a", step=1, step_successes=9, step_failures=2, reasons={Event.SLOW})
    failback.start_canary(health, 70.0)
    assert (health.step, health.step_successes, health.step_failures) == (0, 0, 0)
    assert (health.evidence_from, health.reasons) == (70.0, set())


def test_f15_a_failed_probe_starts_the_count_again_and_lengthens_the_pause_up_to_the_limit() -> None:
    health, pauses = Health("a", state=State.PROBING), []
    failback.start_probing(health)
    failback.probe_passed(health)
    for _ in range(7):
        pauses.append(failback.probe_interval_s(health, PLAN))
        failback.probe_failed(health)
        assert health.probes_passed == 0
    assert pauses == pytest.approx([2.0, 3.0, 4.5, 6.75, 10.125, 15.0, 15.0])
    for _ in range(100_000):
        failback.probe_failed(health)
    assert failback.probe_interval_s(health, PLAN) == 15.0
    failback.probe_passed(health)
    assert failback.probe_interval_s(health, PLAN) == 2.0


def test_a_limit_below_the_base_never_shortens_it() -> None:
    sparse = FailbackPolicy(probe_interval_s=60.0, max_probe_interval_s=15.0, min_hold_s=20.0, max_hold_s=5.0)
    health = Health("a", state=State.PROBING, probe_failures=9)
    assert failback.probe_interval_s(health, sparse) == 60.0
    failback.start_doubt(health, Event.SLOW, sparse, REFLEX, 0.0)
    assert health.held_until == 20.0


@pytest.mark.parametrize(
    ("state", "since_s", "quiet_s", "pending", "limited", "wanted"),
    [
        (State.PROBING, 2.0, 0.0, False, False, True),
        (State.PROBING, 1.9, 0.0, False, False, False),
        (State.PROBING, 29.9, 0.0, True, False, False),
        (State.PROBING, 30.0, 0.0, True, False, True),
        (State.PROBING, 60.0, 0.0, False, True, False),
        (State.CANARY, 60.0, 1.9, False, False, False),
        (State.CANARY, 60.0, 2.0, False, False, True),
        (State.DEGRADED, 60.0, 2.0, False, False, True),
        (State.DEGRADED, 60.0, 2.0, False, True, False),
        (State.ACTIVE, 60.0, 60.0, False, False, False),
        (State.UNKNOWN, 60.0, 60.0, False, False, False),
        (State.EJECTED, 60.0, 60.0, False, False, False),
        (State.DRAINING, 60.0, 60.0, False, False, False),
    ],
)
def test_who_is_probed_and_when(
    state: State, since_s: float, quiet_s: float, pending: bool, limited: bool, wanted: bool
) -> None:
    now = 1000.0
    health = Health("a", state=state, probed_at=now - since_s, probe_pending=pending)
    assert failback.wants_probe(health, PLAN, now, now + 1 if limited else now, now - quiet_s) is wanted


@pytest.mark.parametrize(
    ("state", "share"),
    [
        (State.UNKNOWN, 1.0),
        (State.ACTIVE, 1.0),
        (State.EJECTED, 0.0),
        (State.PROBING, 0.0),
        (State.DRAINING, 0.0),
        (State.CANARY, 0.4),
    ],
)
def test_what_each_state_admits(state: State, share: float) -> None:
    assert failback.admission(Health("a", state=state, step=1), PLAN) == share


@pytest.mark.parametrize("event", [Event.SLOW, Event.FORECAST])
def test_a_quota_alone_leaves_the_share_to_the_quota(event: Event) -> None:
    health = Health("a", state=State.DEGRADED)
    failback.start_limited(health)
    assert failback.admission(health, PLAN) == 1.0
    _doubt(health, 0.0, event)
    assert failback.admission(health, PLAN) == 0.2
    assert health.reasons == {event, Event.LIMITED}
