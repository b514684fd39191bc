"""The shipped forecaster in the arena: it warns before a queue hurts; its gate never leaves a policy without choice."""

from sim.arena.loop import run
from sim.arena.scenario import parse_scenario
from sim.arena.truth import World, make_world
from sim.policies import make
from sim.policies.consecutive import Consecutive, ConsecutiveSettings
from sim.policies.forecast import ForecastGate, shipped
from sim.scorecard.definitions import Evidence, measure
from tests.policy_driver import endpoints, request

QUEUE = """
name: queue
description: One slow build-up at the primary.
duration_s: 1500
arrivals: {rate_per_s: 8}
endpoints:
  - {id: a, provider: a, region: eu, ttft_ms: 400, usd_per_mtok: 1}
  - {id: b, provider: b, region: eu, ttft_ms: 450, usd_per_mtok: 1}
incidents:
  - {kind: queue, endpoint: a, at_s: 1000, climb_s: 180, hold_s: 200}
"""


def _world() -> World:
    return make_world(parse_scenario(QUEUE), 4321)


def _measured(name: str) -> dict[str, float | None]:
    world = _world()
    log = run(world, make(name, world.endpoints, world.seed), check=True)
    return measure(Evidence(log, world.troubles, world.normal_ttft_s))


def test_f09_f10_the_forecast_warns_of_a_queue_before_it_hurts_and_the_reflex_cannot() -> None:
    early, reflex = _measured("routecast-forecast"), _measured("routecast-reflex")
    assert early["early_recall"] == 1.0
    assert (early["lead_s"] or 0) > 5
    assert (early["bad_per_1k"] or 0) <= (reflex["bad_per_1k"] or 0)


def test_a_gate_moves_what_a_policy_that_counts_failures_never_would() -> None:
    world = _world()
    gate = ForecastGate(Consecutive(2, ConsecutiveSettings()), world.endpoints, "consecutive+forecast")
    gated = measure(Evidence(run(world, gate, check=True), world.troubles, world.normal_ttft_s))
    alone = _measured("consecutive")
    assert (gated["bad_per_1k"] or 0) < (alone["bad_per_1k"] or 0)
    assert gated["early_recall"] == 1.0
    assert alone["early_recall"] == 0.0


def test_a_gate_that_is_shut_everywhere_stands_aside() -> None:
    gate = ForecastGate(Consecutive(2, ConsecutiveSettings()), endpoints(2), "consecutive+forecast")
    gate._shut = frozenset({0, 1})  # no forecast of the shipped model says so at will
    assert gate.route(request(0), [], 0.0, 0.5) == 0


def test_the_shipped_model_is_read_once() -> None:
    assert shipped() is shipped()
