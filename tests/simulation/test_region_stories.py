"""Regions on a virtual clock: an outage that strikes several endpoints is met as one, and over as one.

Proves F-13 for the core: detection as one event, crossing to another region, return when the region is stable.
"""

import random

import pytest

from routing.health import Event, State
from routing.model import Endpoint
from routing.outcomes import Outcome
from tests.routing_world import Reply, Script, World, always, during, endpoint, steady

BROKEN = always(Reply(0.05, Outcome.SERVER_ERROR))
ZONES = ("eu-a", "eu-b", "eu-c")


def _fleet() -> list[Endpoint]:
    europe = [endpoint(name, i, provider="borealis", region="eu", zone=name) for i, name in enumerate(ZONES)]
    return [*europe, endpoint("us-a", 3, provider="borealis", region="us", zone="us-a")]


def _world(script: Script, seed: int, struck: tuple[str, ...] = ZONES) -> World:
    scripts = {name: script if name in struck else steady for name in (*ZONES, "us-a")}
    return World(scripts, seed=seed, endpoints=_fleet())


def _attempts(world: World, name: str, start: float, end: float) -> int:
    chosen = [d for d in world.decisions if start <= d.time < end and d.chosen is not None]
    return sum(d.chosen is not None and d.chosen.facts.endpoint.id == name for d in chosen)


@pytest.mark.parametrize("seed", range(5))
def test_f13_a_region_out_is_one_event_that_ends_the_harm_at_once(seed: int) -> None:
    world = _world(during(300, 420, BROKEN), seed)
    world.run(700, every_s=0.1)
    assert [(c.domain.name, c.is_down) for c in world.domains] == [("borealis/eu", True), ("borealis/eu", False)]
    down, up = world.domains
    assert 300 < down.time < 303
    assert 420 < up.time < 440
    moved = [t for t in world.transitions if t.event is Event.DOMAIN]
    assert [(t.note, t.to_state) for t in moved] == [("borealis/eu", State.PROBING)]
    assert all(_attempts(world, zone, down.time + 1e-6, 420) == 0 for zone in ZONES), "probes alone ask the region now"
    assert sum(served.attempts > 1 for served in world.between(300, 420)) <= 8
    assert all(served.endpoint_id for served in world.served), "nobody got an error"
    during_outage = world.between(down.time + 1, 420)
    assert {served.endpoint_id for served in during_outage} == {"us-a"}
    assert {served.attempts for served in during_outage} == {1}


@pytest.mark.parametrize("seed", range(5))
def test_f13_no_zone_returns_before_the_region_is_stable_and_then_the_primary_has_its_traffic_again(seed: int) -> None:
    world = _world(during(300, 420, BROKEN), seed)
    world.run(700, every_s=0.1)
    returns = [t for t in world.transitions if t.to_state is State.CANARY]
    up = world.domains[-1].time
    assert min(t.time for t in returns) == up
    assert sum(t.time == up for t in returns) >= 2, "those that had passed came back together"
    late = world.between(600, 700)
    assert {served.endpoint_id for served in late} == {"eu-a"}


def test_f13_a_zone_out_leaves_the_region_alone() -> None:
    world = _world(during(300, 420, BROKEN), seed=3, struck=("eu-a",))
    world.run(600, every_s=0.1)
    assert world.domains == []
    assert {served.endpoint_id for served in world.between(310, 415)} == {"eu-b"}


def test_f13_independent_noise_is_no_regional_event() -> None:
    """Every endpoint fails one request in fifty, on its own: an hour of it moves no region."""

    def noisy(now: float, rng: random.Random) -> Reply:
        outcome = Outcome.SERVER_ERROR if rng.random() < 0.02 else Outcome.OK
        return Reply(steady(now, rng).ttft_s, outcome)

    world = _world(noisy, seed=11, struck=(*ZONES, "us-a"))
    world.run(3600, every_s=0.1)
    assert world.domains == []
