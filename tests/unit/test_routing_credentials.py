"""Refused keys belong to their tenant: they never eject an endpoint for others, and are asked again by and by."""

from dataclasses import replace

from routing.actions import Finished
from routing.credentials import Credentials
from routing.engine import Engine
from routing.health import State
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from tests.routing_world import MODEL, engine_of

NOW = 1000.0


def _refuse(engine: Engine, name: str, tenant: str, now: float) -> None:
    engine.started(name, "a", now)
    engine.finished(Finished(name, "a", Outcome.AUTH_ERROR, tenant=tenant), now)


def _chosen(engine: Engine, tenant: str, now: float) -> str:
    decision = decide(engine.snapshot, RouteRequest(MODEL, tenant=tenant), now, 0.0)
    return decision.chosen.facts.endpoint.id if decision.chosen else ""


def test_one_tenants_bad_key_keeps_that_tenant_away_and_nobody_else() -> None:
    engine = engine_of("first", "second", now=NOW)
    for i in range(20):
        _refuse(engine, "first", "acme", NOW + i / 10)
    assert engine.health_of("first").state is State.UNKNOWN
    assert (_chosen(engine, "acme", NOW + 2), _chosen(engine, "globex", NOW + 2)) == ("second", "first")
    decision = decide(engine.snapshot, RouteRequest(MODEL, tenant="acme"), NOW + 2, 0.0)
    assert [c.excluded_by for c in decision.considered if c.exclusion] == ["key_refused"]


def test_the_pause_ends_without_a_tick_and_doubles_with_each_refusal() -> None:
    engine = engine_of("first", "second", now=NOW)
    _refuse(engine, "first", "acme", NOW)
    assert (_chosen(engine, "acme", NOW + 4.9), _chosen(engine, "acme", NOW + 5.1)) == ("second", "first")
    _refuse(engine, "first", "acme", NOW + 6)
    assert (_chosen(engine, "acme", NOW + 15.9), _chosen(engine, "acme", NOW + 16.1)) == ("second", "first")


def test_an_accepted_key_ends_the_pause_at_once() -> None:
    engine = engine_of("first", "second", now=NOW)
    _refuse(engine, "first", "acme", NOW)
    engine.started("first", "b", NOW + 1)
    engine.finished(Finished("first", "b", Outcome.OK, ttft_s=0.2, tenant="acme"), NOW + 1)
    assert _chosen(engine, "acme", NOW + 1) == "first"
    assert not engine.snapshot.barring


def test_a_tenant_whose_key_everybody_refuses_still_gets_an_answer_from_a_provider() -> None:
    engine = engine_of("first", "second", now=NOW)
    _refuse(engine, "first", "acme", NOW)
    _refuse(engine, "second", "acme", NOW)
    request = RouteRequest(MODEL, tenant="acme")
    decision = decide(engine.snapshot, request, NOW + 1, 0.0)
    assert decision.panic
    assert decision.chosen is not None
    again = decide(engine.snapshot, replace(request, excluded=frozenset({"first"})), NOW + 1, 0.0)
    assert again.chosen is not None
    assert again.chosen.facts.endpoint.id == "second"


def test_in_panic_an_endpoint_that_takes_the_key_goes_before_one_that_does_not() -> None:
    engine = engine_of("first", "second", now=NOW)
    _refuse(engine, "first", "acme", NOW)
    engine.started("second", "b", NOW)
    engine.finished(Finished("second", "b", Outcome.CONNECT_ERROR), NOW)
    assert engine.health_of("second").state is State.EJECTED
    assert (_chosen(engine, "acme", NOW + 1), _chosen(engine, "globex", NOW + 1)) == ("second", "first")


def test_memory_is_bounded_by_forgetting_the_pause_that_ends_first() -> None:
    credentials = Credentials()
    for i in range(3000):
        credentials.refused(f"t{i}", NOW + i)
    assert len(credentials.barred) == 1024
    assert "t2999" in credentials.barred
    assert "t0" not in credentials.barred
