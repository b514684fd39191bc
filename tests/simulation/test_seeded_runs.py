"""Ten thousand short simulations, each of another tiny world, with every invariant of issue 3 verified on the way.

Worlds, policies and forecasts are drawn from the seed: two to four endpoints, a minute or two, 1 to 20 requests a
second, and up to four incidents of any kind. The arena's referee verifies what holds for any policy (deadline,
attempts, retry budget, no second provider after a first token); `tests.watched` what holds for the engine (holds,
shares, who may serve, numbers, memory, replay). Whatever is verified is also broken on purpose.
"""

from collections import Counter
from random import Random

import pytest

from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.health import Event
from routing.policy import BudgetPolicy, FailbackKind, FailbackPolicy, HedgePolicy, HedgeScope, Policy, ReflexPolicy
from sim.arena.incidents import DEFAULTS, SHARED, ArenaKind
from sim.arena.loop import run
from sim.arena.oracle import Oracle
from sim.arena.scenario import Arrivals, Endpoint, Process, Scenario, Scripted
from sim.arena.truth import World, make_world
from sim.policies import NAMES, make
from sim.policies.routecast import Forecaster
from tests.watched import Watched, check_log

BLOCKS, SIZE = 25, 400
BASELINES = tuple(name for name in NAMES if "routecast" not in name and "forecast" not in name)
# Every so many worlds, all baselines play too.
_SHARED_EVERY = 40
# The service ticks every 0.25 s. Most of these runs tick more seldom: that takes less time, and nothing may rest on it.
_TICKS_S = (0.25, *[1.0] * 2, *[2.0] * 7, *[4.0] * 30)
# What a block must have met, or its checks were vacuous.
_MET = (
    Event.PROVEN, Event.BREACH, Event.SLOW, Event.LIMITED, Event.FORECAST, Event.DOMAIN, Event.CALM, Event.RELIEVED,
    Event.EJECTION_OVER, Event.PROBES_PASSED, Event.STEP_PROVEN, Event.PLAN_DONE, "panic", "refused", "hedges",
    "probes", "replayed",
)  # fmt: skip


def _endpoint(index: int, rng: Random) -> Endpoint:
    return Endpoint(
        id=f"e{index}", provider=rng.choice("pqr"), region=rng.choice(("eu", "us")), zone=rng.choice("ab"),
        ttft_ms=rng.uniform(100, 1200), ttft_sigma=rng.uniform(0, 0.6), tokens_per_s=rng.uniform(30, 200),
        error_rate=rng.choice((0, 0.002, 0.05)), limited_rate=rng.choice((0, 0.001, 0.02)),
        usd_per_mtok=rng.uniform(0, 5),
    )  # fmt: skip


def _incident(endpoints: tuple[Endpoint, ...], duration_s: int, rng: Random) -> Scripted:
    kind = rng.choice(tuple(ArenaKind))
    struck = rng.choice(endpoints)
    seconds = {name: rng.uniform(0.5, 25) for name in DEFAULTS[kind] if name.endswith("_s") and name != "retry_after_s"}
    target = {"endpoint": struck.id}
    if kind in SHARED or rng.random() < 0.2:
        target = {"provider": struck.provider} if rng.random() < 0.5 else {"region": struck.region}
    return Scripted(kind=kind, at_s=rng.uniform(0, 0.8) * duration_s, **seconds, **target)  # type: ignore[arg-type]  # built by keyword from a table


def tiny_world(seed: int) -> World:
    """Return a world of a minute or two."""
    rng = Random(seed)
    endpoints = tuple(_endpoint(index, rng) for index in range(rng.choice((2, 2, 3, 4))))
    # Most worlds have little traffic, so that ten thousand of them take about a minute.
    rate_per_s = 20.0 ** rng.random() ** 40
    duration_s = rng.choice((60, 60, 60, 60, 120)) if rate_per_s < 2 else 60
    scenario = Scenario(
        name="tiny", description="", duration_s=duration_s, endpoints=endpoints, sessions=5,
        arrivals=Arrivals(rate_per_s=rate_per_s, process=rng.choice(tuple(Process))),
        deadline_s=rng.choice((4.0, 10.0, 30.0)),
        incidents=tuple(_incident(endpoints, duration_s, rng) for _ in range(rng.randint(1, 4))),
    )  # fmt: skip
    return make_world(scenario, seed)


def drawn_policy(seed: int) -> Policy:
    """Return thresholds, plans, budgets and hedging for a seed; the shipped ones for every fourth."""
    rng = Random(f"policy {seed}")
    if seed % 4 == 0:
        return Policy()
    return Policy(
        reflex=ReflexPolicy(
            ejection_s=rng.choice((2.0, 5.0, 12.0)), max_ejection_s=rng.choice((10.0, 60.0)), forgive_s=20.0
        ),
        failback=FailbackPolicy(
            rng.choice(tuple(FailbackKind)), ramp_step=0.3, step_s=rng.choice((1.0, 5.0)),
            min_hold_s=rng.choice((3.0, 15.0)), max_hold_s=rng.choice((15.0, 40.0)),
        ),
        budget=BudgetPolicy(retry_share=rng.choice((0.0, 0.2)), retry_floor_per_s=rng.choice((0.1, 0.5, 10.0))),
        hedge=HedgePolicy(rng.choice(tuple(HedgeScope)), max_share=rng.choice((0.05, 0.5)), window_s=60.0),
    )  # fmt: skip


def drawn_forecaster(seed: int) -> Forecaster | None:
    """Return a forecaster that knows nothing and now and then cries wolf, for every third seed."""
    if seed % 3:
        return None
    rng = Random(f"forecasts {seed}")

    def forecast(engine: Engine, now: float) -> Forecasts | None:
        if rng.random() < 0.3:
            return None
        risks = {name: rng.random() ** 8 for name in engine.catalogue.endpoints}
        return Forecasts(now, "wolf", 0.8, risks)

    return forecast


def watched(world: World, seed: int) -> Watched:
    """Return Routecast for a seed, with a tick of its own."""
    policy = Watched(world.endpoints, drawn_policy(seed), drawn_forecaster(seed))
    policy.tick_s = Random(f"ticks {seed}").choice(_TICKS_S)
    return policy


def _play(seed: int) -> Counter[str]:
    world = tiny_world(seed)
    policy = watched(world, seed)
    check_log(run(world, policy, check=True), world.scenario.deadline_s)
    policy.close()
    if seed % _SHARED_EVERY == 0:
        for other in (Oracle(world), *(make(name, world.endpoints, seed) for name in BASELINES)):
            check_log(run(world, other, check=True), world.scenario.deadline_s)
    return policy.seen


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_world_breaks_an_invariant(block: int) -> None:
    """F-02, F-06, F-07, F-15, F-20, F-21 and the invariants of issue 3; 10,000 worlds in all."""
    seen: Counter[str] = Counter()
    for seed in range(block * SIZE, (block + 1) * SIZE):
        try:
            seen += _play(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert all(seen[what] for what in _MET), f"never met: {[what for what in _MET if not seen[what]]}"
