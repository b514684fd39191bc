"""F-13: endpoints that fail together are one event of what they share, and move and return together."""

import pytest

from routing.actions import Action, DomainChanged, Finished, Probe
from routing.domains import DomainKind, DomainWatch, domains_of
from routing.engine import Engine
from routing.errors import PolicyError
from routing.forecasts import Forecasts
from routing.health import Event, State
from routing.model import Catalogue, Endpoint
from routing.outcomes import Outcome
from routing.policy import DomainPolicy, Policy
from tests.routing_world import eject, endpoint, observe, transitions_of

NOW = 1000.0


def _at(name: str, provider: str, region: str, zone: str = "a", order: int = 0) -> Endpoint:
    return endpoint(name, order, provider=provider, region=region, zone=zone)


# borealis has two regions of two zones and one; atlas shares the name of one region.
FLEET = (
    _at("b-eu-1", "borealis", "eu", "a", 0),
    _at("b-eu-2", "borealis", "eu", "b", 1),
    _at("b-eu-3", "borealis", "eu", "b", 2),
    _at("b-us-1", "borealis", "us", "a", 3),
    _at("a-eu-1", "atlas", "eu", "a", 4),
)


def _engine(*endpoints: Endpoint, policy: Policy | None = None) -> Engine:
    engine = Engine(Catalogue.of(endpoints or FLEET), policy or Policy(), NOW - 100)
    for each in endpoints or FLEET:
        observe(engine, each.id, Outcome.OK, NOW - 50, ttft_s=0.2)
    return engine


def _break(engine: Engine, name: str, now: float) -> list[Action]:
    return observe(engine, name, Outcome.CONNECT_ERROR, now)


def _changes(actions: list[Action]) -> list[tuple[str, str, bool, tuple[str, ...]]]:
    return [
        (a.domain.kind.value, a.domain.name, a.is_down, a.endpoint_ids) for a in actions if isinstance(a, DomainChanged)
    ]


def _states(engine: Engine) -> dict[str, State]:
    return {name: engine.health_of(name).state for name in engine.catalogue.endpoints}


def _probe(engine: Engine, name: str, outcome: Outcome, now: float, count: int = 2) -> list[Action]:
    actions: list[Action] = []
    for i in range(count):
        engine.started(name, f"p{i}", now)
        actions += engine.probed(Finished(name, f"p{i}", outcome), now)
    return actions


def test_domains_are_nested_and_each_appears_once() -> None:
    found = {(d.kind, d.name): dict(d.parts) for d in domains_of(FLEET)}
    assert found == {
        (DomainKind.LOCATION, "eu"): dict.fromkeys(("b-eu-1", "b-eu-2", "b-eu-3"), "borealis") | {"a-eu-1": "atlas"},
        (DomainKind.PROVIDER, "borealis"): {"b-eu-1": "eu", "b-eu-2": "eu", "b-eu-3": "eu", "b-us-1": "us"},
        (DomainKind.REGION, "borealis/eu"): {"b-eu-1": "a", "b-eu-2": "b", "b-eu-3": "b"},
        (DomainKind.ZONE, "borealis/eu/b"): {"b-eu-2": "b-eu-2", "b-eu-3": "b-eu-3"},
    }  # fmt: skip


def test_a_provider_of_one_zone_is_one_domain_and_several_entries_may_be_one_company() -> None:
    one_zone = [_at("x-1", "x", "eu"), _at("x-2", "x", "eu")]
    (domain,) = domains_of(one_zone)
    assert (domain.kind, domain.name, dict(domain.parts)) == (DomainKind.PROVIDER, "x", {"x-1": "x-1", "x-2": "x-2"})
    entries = [
        endpoint("x-eu:m", provider="x-eu", region="eu", company="x"),
        endpoint("x-us:m", provider="x-us", region="us", company="x"),
    ]
    assert [(d.kind, d.name) for d in domains_of(entries)] == [(DomainKind.PROVIDER, "x")]


def test_f13_a_region_out_is_one_event_that_moves_those_who_have_not_failed_yet() -> None:
    engine = _engine()
    assert _changes(_break(engine, "b-eu-1", NOW)) == []
    actions = _break(engine, "b-eu-2", NOW + 0.3)
    everyone = ("b-eu-1", "b-eu-2", "b-eu-3")
    assert _changes(actions) == [("region", "borealis/eu", True, everyone)]
    moved = [t for t in transitions_of(actions) if t.event is Event.DOMAIN]
    assert [(t.endpoint_id, t.to_state, t.note) for t in moved] == [("b-eu-3", State.PROBING, "borealis/eu")]
    assert (moved[0].cause.metric, moved[0].cause.value, moved[0].cause.threshold) == ("domain_parts_out", 2.0, 2.0)
    assert _states(engine)["b-us-1"] is _states(engine)["a-eu-1"] is State.ACTIVE


@pytest.mark.parametrize("before", [State.DEGRADED, State.CANARY])
def test_f13_a_member_that_keeps_a_share_moves_with_its_domain(before: State) -> None:
    engine = _engine()
    if before is State.DEGRADED:
        engine.forecast(Forecasts(NOW, "m", 0.5, {"b-eu-3": 0.9}), NOW)
    else:
        engine.drain("b-eu-3", "kim: maintenance", NOW - 1)
        engine.restore("b-eu-3", "kim: done", NOW - 1)
        _probe(engine, "b-eu-3", Outcome.OK, NOW - 1)
    _break(engine, "b-eu-1", NOW + 1)
    moved = transitions_of(_break(engine, "b-eu-2", NOW + 2))
    assert [(t.from_state, t.event, t.to_state) for t in moved if t.endpoint_id == "b-eu-3"] == [
        (before, Event.DOMAIN, State.PROBING)
    ]


def test_trouble_of_one_part_says_nothing_of_the_whole() -> None:
    engine = _engine()
    _break(engine, "b-eu-2", NOW)
    actions = _break(engine, "b-eu-3", NOW + 0.1)
    assert _changes(actions) == [("zone", "borealis/eu/b", True, ("b-eu-2", "b-eu-3"))]
    assert _states(engine)["b-eu-1"] is State.ACTIVE


def test_a_member_that_has_served_since_speaks_for_the_domain() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    engine.started("b-eu-3", "since", NOW + 0.1)
    engine.finished(Finished("b-eu-3", "since", Outcome.OK, ttft_s=0.2), NOW + 0.3)
    assert _changes(_break(engine, "b-eu-2", NOW + 0.4)) == []


def test_what_was_in_flight_before_the_outage_does_not_speak_for_the_domain() -> None:
    engine = _engine()
    engine.started("b-eu-3", "before", NOW - 1)
    _break(engine, "b-eu-1", NOW)
    engine.finished(Finished("b-eu-3", "before", Outcome.OK, ttft_s=0.2), NOW + 0.3)
    assert [c[:3] for c in _changes(_break(engine, "b-eu-2", NOW + 0.4))] == [("region", "borealis/eu", True)]


def test_ejections_far_apart_are_no_event() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    assert _changes(_break(engine, "b-eu-2", NOW + 31)) == []


def test_the_outage_grows_with_the_evidence() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    _break(engine, "b-eu-2", NOW + 0.1)
    wider = _break(engine, "b-us-1", NOW + 0.2)
    assert [c[:3] for c in _changes(wider)] == [("provider", "borealis", True)]
    assert [outage.domain.name for outage in engine.outages] == ["borealis"], "it takes the place of its part's"
    location = _break(engine, "a-eu-1", NOW + 0.3)
    assert [c[:3] for c in _changes(location)] == [("location", "eu", True)]


def test_f13_the_domain_returns_together_once_it_is_stable() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    _break(engine, "b-eu-2", NOW + 0.1)
    assert _probe(engine, "b-eu-3", Outcome.OK, NOW + 3) == [], "one of three does not make the region stable"
    assert _states(engine)["b-eu-3"] is State.PROBING
    engine.tick(NOW + 6)
    actions = _probe(engine, "b-eu-1", Outcome.OK, NOW + 6.5)
    assert [(t.endpoint_id, t.to_state) for t in transitions_of(actions)] == [
        ("b-eu-1", State.CANARY), ("b-eu-3", State.CANARY),
    ]  # fmt: skip
    assert [c[:3] for c in _changes(actions)] == [("region", "borealis/eu", False)]
    assert engine.outages == ()
    alone = _probe(engine, "b-eu-2", Outcome.OK, NOW + 7)
    assert [(t.endpoint_id, t.to_state) for t in transitions_of(alone)] == [("b-eu-2", State.CANARY)]


def test_a_failed_probe_takes_back_what_had_passed() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    _break(engine, "b-eu-2", NOW + 0.1)
    _probe(engine, "b-eu-3", Outcome.OK, NOW + 3)
    _probe(engine, "b-eu-3", Outcome.SERVER_ERROR, NOW + 5, count=1)
    engine.tick(NOW + 6)
    assert transitions_of(_probe(engine, "b-eu-1", Outcome.OK, NOW + 6.5)) == []


def test_nobody_waits_for_the_others_for_ever() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    _break(engine, "b-eu-2", NOW + 0.1)
    _probe(engine, "b-eu-3", Outcome.OK, NOW + 3)
    actions = _probe(engine, "b-eu-3", Outcome.OK, NOW + 33, count=1)
    assert [(t.endpoint_id, t.to_state) for t in transitions_of(actions)] == [("b-eu-3", State.CANARY)]


def test_an_outage_does_not_wait_for_what_an_operator_took_out() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    _break(engine, "b-eu-2", NOW + 0.1)
    engine.drain("b-eu-1", "maintenance", NOW + 1)
    actions = _probe(engine, "b-eu-3", Outcome.OK, NOW + 3)
    assert [(t.endpoint_id, t.to_state) for t in transitions_of(actions)] == [("b-eu-3", State.CANARY)]


def test_idle_members_are_probed_instead_of_being_tried_by_callers() -> None:
    engine = _engine()
    _break(engine, "b-eu-1", NOW)
    _break(engine, "b-eu-2", NOW + 0.1)
    probed = {a.endpoint.id for a in engine.tick(NOW + 2.2) if isinstance(a, Probe)}
    assert "b-eu-3" in probed


def test_a_returned_member_does_not_count_for_the_next_event() -> None:
    engine = _engine()
    eject(engine, "b-eu-1", NOW)
    engine.tick(NOW + 6)
    _probe(engine, "b-eu-1", Outcome.OK, NOW + 6.5)
    assert _states(engine)["b-eu-1"] is State.CANARY
    assert _changes(_break(engine, "b-eu-2", NOW + 7)) == []


def test_every_domain_down_leaves_panic_to_serve() -> None:
    engine = _engine()
    for i, name in enumerate(_states(engine)):
        _break(engine, name, NOW + i / 10)
    assert set(_states(engine).values()) <= {State.EJECTED, State.PROBING}
    assert [outage.domain.name for outage in engine.outages] == ["borealis", "eu"]


def test_new_thresholds_hold_from_the_next_event_on() -> None:
    engine = _engine()
    engine.adopt(Policy(domains=DomainPolicy(min_parts=3)), NOW)
    _break(engine, "b-eu-1", NOW)
    assert _changes(_break(engine, "b-eu-2", NOW + 0.1)) == []


@pytest.mark.parametrize(
    "values",
    [{"span_s": 0.0}, {"min_parts": 1}, {"returning_share": 0.0}, {"returning_share": 1.1}, {"max_wait_s": -1}],
)  # fmt: skip
def test_a_policy_out_of_range_is_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match=next(iter(values))):
        DomainPolicy(**values)  # type: ignore[arg-type]  # built by keyword from a table


def test_an_endpoint_that_shares_nothing_has_no_domain() -> None:
    watch = DomainWatch([_at("x", "x", "eu"), _at("y", "y", "eu")], DomainPolicy())
    assert watch.ejected("x", NOW) is None
    assert watch.ejected("y", NOW) is None, "one location only: its name means nothing"
    assert watch.passed("x", NOW) == (("x",), None)
