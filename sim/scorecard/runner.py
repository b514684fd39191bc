"""Runs policies × scenarios × seeds over a pool of processes.

The rule of this file: all policies of one (scenario, seed) meet the same world with the same luck, in one process; the
order of the results depends on nothing but the arguments.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from sim.arena.loop import run
from sim.arena.oracle import Oracle
from sim.arena.policy import Policy
from sim.arena.scenario import Scenario
from sim.arena.truth import World, make_world
from sim.policies import make
from sim.processes import process_pool
from sim.scorecard.definitions import Evidence, Metrics, avoidable_removed, measure

STATIC, ORACLE = "static", "oracle"


@dataclass(frozen=True, slots=True)
class Contender:
    """A policy on the card: its `name` there, the `base` it is made of, and the parameters that differ from `base`."""

    name: str
    base: str
    parameters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One run on the card. `metrics` are those of `sim.scorecard.definitions`, None where there is no evidence."""

    policy: str
    scenario: str
    seed: int
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class _Job:
    scenario: Scenario
    seed: int
    contenders: tuple[Contender, ...]
    check: bool


def run_card(
    scenarios: Sequence[Scenario],
    seeds: Sequence[int],
    contenders: Sequence[Contender],
    *,
    jobs: int = 2,
    check: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Play every contender in every world; the rows are by contender, scenario and seed, in the order given.

    Args:
        scenarios, seeds, contenders: what to run.
        jobs: processes; with 1 everything runs in this one.
        check: verify the arena's invariants on the way.
        progress: told how many of how many worlds are done.

    Raises:
        ArenaInvariantError: with `check`, an invariant broke.
        ValueError: a metric is not finite or not in its range.
    """
    work = [_Job(scenario, seed, tuple(contenders), check) for scenario in scenarios for seed in seeds]
    done: list[list[Row]] = []
    with ExitStack() as stack:
        play = map if jobs == 1 else stack.enter_context(process_pool(jobs)).map
        for rows in play(_play, work):
            done.append(rows)
            if progress:
                progress(len(done), len(work))
    return [row for column in zip(*done, strict=True) for row in column]


def policy_of(contender: Contender, world: World) -> Policy:
    """Return a new policy for one run.

    Raises:
        ValueError: `contender` has a base or a parameter that does not exist.
    """
    if contender.base == ORACLE:
        return Oracle(world)
    return make(contender.base, world.endpoints, world.seed, contender.parameters)


def _play(job: _Job) -> list[Row]:
    world = make_world(job.scenario, job.seed)
    measured: dict[str, Metrics] = {}
    for contender in (*job.contenders, Contender(STATIC, STATIC), Contender(ORACLE, ORACLE)):
        if contender.name not in measured:
            log = run(world, policy_of(contender, world), check=job.check)
            measured[contender.name] = measure(Evidence(log, world.troubles, world.normal_ttft_s))
    static, oracle = measured[STATIC]["bad_per_1k"], measured[ORACLE]["bad_per_1k"]
    rows = []
    for contender in job.contenders:
        metrics = measured[contender.name]
        removed = avoidable_removed(metrics["bad_per_1k"], static, oracle)
        avoidable = None if removed is None or static is None or oracle is None else static - oracle
        more: Metrics = {"avoidable_per_1k": avoidable, "avoidable_removed": removed}
        rows.append(Row(contender.name, job.scenario.name, job.seed, {**metrics, **more}))
    return rows
