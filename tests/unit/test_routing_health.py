"""The health table, checked as a whole: what it lists happens, what it does not list changes nothing."""

from itertools import product

import pytest

from routing.health import ACTOR_OF, TABLE, Actor, Cause, Event, Health, State

CAUSE = Cause("metric", 1.0, 0.5)
LISTED = sorted(TABLE)
UNLISTED = sorted(set(product(State, Event)) - set(TABLE))


@pytest.mark.parametrize(("state", "event"), LISTED)
def test_a_listed_event_moves_and_tells_why(state: State, event: Event) -> None:
    health = Health("a", state=state, entered_at=1.0)
    transition = health.apply(event, CAUSE, 9.0)
    assert transition is not None
    assert (transition.from_state, transition.to_state, transition.event) == (state, TABLE[state, event], event)
    assert (transition.time, transition.endpoint_id, transition.cause) == (9.0, "a", CAUSE)
    assert transition.actor is ACTOR_OF[event]
    assert health.state is TABLE[state, event]
    assert health.entered_at == (1.0 if health.state is state else 9.0)


@pytest.mark.parametrize(("state", "event"), UNLISTED)
def test_an_event_not_listed_changes_nothing(state: State, event: Event) -> None:
    health = Health("a", state=state, entered_at=1.0)
    assert health.apply(event, CAUSE, 9.0) is None
    assert health == Health("a", state=state, entered_at=1.0)


def _reachable(start: State) -> set[State]:
    found, frontier = set[State](), {start}
    while frontier:
        found |= frontier
        frontier = {to for (state, _), to in TABLE.items() if state in frontier} - found
    return found


def test_every_state_can_be_reached() -> None:
    assert _reachable(State.UNKNOWN) == set(State)


@pytest.mark.parametrize("state", State)
def test_every_state_leads_back_to_active(state: State) -> None:
    assert State.ACTIVE in _reachable(state)


def _targets(state: State) -> set[State]:
    """Where a state leads without an operator."""
    return {to for (start, event), to in TABLE.items() if start is state and event is not Event.DRAIN}


def test_an_ejected_endpoint_returns_by_probes_and_canary_alone() -> None:
    assert _targets(State.EJECTED) == {State.PROBING}
    assert _targets(State.PROBING) == {State.CANARY}, "a failed probe is no new ejection: probing goes on"


def test_f17_a_rate_limit_a_forecast_or_latency_never_ejects() -> None:
    assert {event for (_, event), to in TABLE.items() if to is State.EJECTED} == {Event.BREACH}


def test_f06_full_traffic_is_regained_by_a_plan_or_by_a_quota_alone() -> None:
    back = {event for (state, event), to in TABLE.items() if to is State.ACTIVE and state is not State.UNKNOWN}
    assert back == {Event.PLAN_DONE, Event.RELIEVED}


def test_f21_an_operator_drains_any_state_and_alone_brings_it_back() -> None:
    assert {state for state, event in TABLE if event is Event.DRAIN} == set(State) - {State.DRAINING}
    assert {event: to for (state, event), to in TABLE.items() if state is State.DRAINING} == {
        Event.RESTORE: State.PROBING
    }
    assert {event for event, actor in ACTOR_OF.items() if actor is Actor.OPERATOR} == {Event.DRAIN, Event.RESTORE}


def test_f21_what_the_operator_said_is_kept() -> None:
    transition = Health("a", state=State.ACTIVE).apply(Event.DRAIN, CAUSE, 9.0, "kim: maintenance")
    assert transition is not None
    assert transition.note == "kim: maintenance"


def test_every_event_has_an_actor_and_a_use() -> None:
    assert set(ACTOR_OF) == set(Event) == {event for _, event in TABLE}
