"""What a usual provider does by chance moves no traffic; what it does in earnest moves it once (F-06)."""

import random

import pytest

from routing.health import State
from routing.outcomes import Outcome
from tests.routing_world import Reply, Script, World, patient, steady


def _failing(rate: float, outcome: Outcome) -> Script:
    return lambda now, rng: Reply(0.05, outcome) if rng.random() < rate else steady(now, rng)


def _spread(sigma: float) -> Script:
    return lambda _now, rng: Reply(rng.lognormvariate(0, sigma))


def _diverted(world: World) -> float:
    first = [d for d in world.decisions if not d.request.excluded]
    return sum(d.chosen is None or d.chosen.facts.endpoint.id != "primary" for d in first) / len(first)


@pytest.mark.parametrize(
    ("rate", "outcome", "per_s", "span_s"),
    [
        (0.001, Outcome.CONNECT_ERROR, 50, 900),
        (0.01, Outcome.CONNECT_ERROR, 10, 1800),
        (0.02, Outcome.SERVER_ERROR, 50, 900),
        (0.05, Outcome.SERVER_ERROR, 50, 900),
        (0.1, Outcome.SERVER_ERROR, 10, 1800),
    ],
)
def test_f06_usual_failures_move_next_to_no_traffic(rate: float, outcome: Outcome, per_s: int, span_s: float) -> None:
    world = World({"primary": _failing(rate, outcome), "secondary": steady})
    world.run(span_s, 1 / per_s)
    assert world.states("primary").count(State.EJECTED) <= 1
    assert _diverted(world) < 0.04, "no more than one ejection and its return"


@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.0])
@pytest.mark.parametrize("every_s", [3.0, 0.5])
def test_f06_widely_spread_latency_is_no_doubt(sigma: float, every_s: float) -> None:
    world = World({"primary": _spread(sigma), "secondary": steady})
    world.run(7200, every_s)
    assert world.states("primary").count(State.DEGRADED) <= 1
    assert _diverted(world) < 0.01


def test_f06_latency_that_comes_and_goes_is_avoided_for_longer_each_time() -> None:
    """Five times slower for 20 s of every 60 s: each minute has reason to leave and reason to return."""

    def bursts(now: float, rng: random.Random) -> Reply:
        return Reply(steady(now, rng).ttft_s * (5 if now > 600 and now % 60 < 20 else 1))

    world = World({"primary": bursts, "secondary": steady}, patient())
    world.run(4200, 0.2)
    assert 2 <= len(world.switches()) <= 30, "60 bursts would be 120 switches"
    slow = [d for d in world.decisions if d.time > 1200 and d.time % 60 < 20 and not d.request.excluded]
    avoided = sum(d.chosen is not None and d.chosen.facts.endpoint.id != "primary" for d in slow) / len(slow)
    assert avoided > 0.6
