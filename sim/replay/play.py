"""Plays policies against drawn worlds of recorded hours, over a pool of processes.

The rule of this file: all policies of one hour and seed meet the same world with the same luck; the order of the
results depends on nothing but the arguments. Only what happened after the warm-up counts.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from routing.policy import Policy as RoutingPolicy
from scoring.artifact import Model
from sim.arena.log import Log
from sim.arena.loop import run
from sim.arena.policy import Policy
from sim.arena.scenario import Scenario
from sim.arena.truth import Trouble, World, make_world
from sim.policies import make
from sim.policies.forecast import ArenaForecaster
from sim.policies.routecast import Routecast
from sim.processes import process_pool
from sim.scorecard.definitions import EARLY_S, GONE, HALF, Evidence, Metrics, measure

_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Player:
    """A policy by the name it has in the report: routecast under `policy` (with `model`, forecasting too), or else the
    policy of `sim.policies` that is called `base`.
    """

    name: str
    policy: RoutingPolicy | None = None
    model: Model | None = None
    base: str = ""

    def make(self, world: World) -> Policy:
        """Return a new policy for one run."""
        if self.policy is None:
            return make(self.base, world.endpoints, world.seed)
        forecaster = None if self.model is None else ArenaForecaster(world.endpoints, self.model, world.seed)
        return Routecast(world.endpoints, self.policy, forecaster, self.name)


class Playable(Protocol):
    """What worlds can be drawn from: a chronicle of recorded history, or a simulated scenario.

    Requests count after `warm_s` seconds, and that moment is `began` in unix seconds. The `counted_s` seconds
    from then on represent `stands_for` times as many.
    """

    @property
    def warm_s(self) -> float: ...  # noqa: D102

    @property
    def began(self) -> float: ...  # noqa: D102

    @property
    def stands_for(self) -> float: ...  # noqa: D102

    @property
    def counted_s(self) -> float: ...  # noqa: D102

    def world(self, seed: int) -> World:
        """Draw a world; the same seed draws the same."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """A scenario of the arena as something to play."""

    scenario: Scenario
    warm_s: float = 0.0
    began: float = 0.0
    stands_for: float = 1.0

    @property
    def counted_s(self) -> float:
        """All of it counts."""
        return float(self.scenario.duration_s)

    def world(self, seed: int) -> World:
        """Draw the scenario's world."""
        return make_world(self.scenario, seed)


@dataclass(frozen=True, slots=True)
class Departure:
    """What a policy did about one incident. `left_s`: seconds from its beginning until the policy had given up half of
    the endpoint's traffic, negative before it, None if it stayed; `concerned` is False when it had none there. `bad`:
    requests that failed or were slow between 300 s before its beginning and a minute after its end.
    """

    endpoint: int
    begin: float
    end: float
    kind: str
    concerned: bool
    left_s: float | None
    bad: int


@dataclass(frozen=True, slots=True)
class Played:
    """One run: which player, the place of what was played among the arguments, which draw; the `seconds` and
    `requests` that count.
    """

    player: str
    place: int
    seed: int
    seconds: float
    requests: int
    metrics: Metrics
    departures: tuple[Departure, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    place: int
    played: Playable
    seed: int


_players: tuple[Player, ...] = ()


def _take(players: tuple[Player, ...]) -> None:
    global _players  # noqa: PLW0603  # a worker process is told once; models are large
    _players = players


def play(
    playables: Sequence[Playable],
    players: Sequence[Player],
    *,
    seeds: Sequence[int] = (0,),
    jobs: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Played]:
    """Play every player in the worlds of these seeds; the results are by playable, seed and player, in that order."""
    work = [_Job(i, playable, seed) for i, playable in enumerate(playables) for seed in seeds]
    done: list[Played] = []
    with ExitStack() as stack:
        results: Iterable[list[Played]]
        if jobs == 1:
            _take(tuple(players))
            results = map(_play, work)
        else:
            pool = process_pool(jobs, partial(_take, tuple(players)))
            results = stack.enter_context(pool).map(_play, work)
        for number, played in enumerate(results, 1):
            done += played
            if progress:
                progress(number, len(work))
    return done


def _play(job: _Job) -> list[Played]:
    world, warm_s = job.played.world(job.seed), job.played.warm_s
    troubles = [replace(t, onset_s=t.onset_s - warm_s, end_s=t.end_s - warm_s) for t in world.troubles]
    found = []
    for player in _players:
        log = counted(run(world, player.make(world)), warm_s)
        evidence = Evidence(log, troubles, world.normal_ttft_s)
        departures = tuple(_departure(evidence, trouble, job.played.began) for trouble in troubles)
        found.append(
            Played(player.name, job.place, job.seed, log.duration_s, len(log.arrival_s), measure(evidence), departures)
        )
    return found


def counted(log: Log, warm_s: float) -> Log:
    """Return the part of a log after the warm-up, with times counted from there."""
    first = int(np.searchsorted(log.arrival_s, warm_s))
    probes, warnings = log.probe_s >= warm_s, log.warned_s >= warm_s
    last = dict(zip(log.warned_endpoint[~warnings].tolist(), log.warned_on[~warnings].tolist(), strict=True))
    # A warning that was on when the warm-up ended began then, as far as what counts can tell.
    still_on = [endpoint for endpoint, is_on in last.items() if is_on]
    return Log(
        endpoints=log.endpoints,
        duration_s=log.duration_s - warm_s,
        arrival_s=log.arrival_s[first:] - warm_s,
        first=log.first[first:],
        attempts=log.attempts[first:],
        failed=log.failed[first:],
        hedged=log.hedged[first:],
        ttft_s=log.ttft_s[first:],
        cost_usd=log.cost_usd[first:],
        probe_s=log.probe_s[probes] - warm_s,
        probe_endpoint=log.probe_endpoint[probes],
        probe_cost_usd=log.probe_cost_usd[probes],
        warned_s=np.concatenate([np.zeros(len(still_on)), log.warned_s[warnings] - warm_s]),
        warned_endpoint=np.concatenate([np.array(still_on, dtype=np.int64), log.warned_endpoint[warnings]]),
        warned_on=np.concatenate([np.ones(len(still_on), dtype=np.bool_), log.warned_on[warnings]]),
    )


def _departure(run: Evidence, trouble: Trouble, began: float) -> Departure:
    """Judge one incident; `began` is the unix time of the run's second 0."""
    arrival_s = run.log.arrival_s
    near = (arrival_s >= trouble.onset_s - EARLY_S) & (arrival_s <= trouble.end_s + _AFTER_S)
    highest = run.shares.highest(trouble.endpoint, trouble.onset_s - EARLY_S, trouble.end_s) or 0.0
    return Departure(
        endpoint=trouble.endpoint,
        begin=began + trouble.onset_s,
        end=began + trouble.end_s,
        kind=trouble.kind.value,
        concerned=highest > GONE,
        left_s=left_s(run, trouble),
        bad=int(np.count_nonzero(run.bad & near)),
    )


def left_s(run: Evidence, trouble: Trouble) -> float | None:
    """Return how many seconds after an incident's beginning its endpoint had at most half of the traffic: below 0 when
    that was so before (at most 300 s), None when it never was until the end, or the endpoint never had more.
    """
    window = run.shares.between(trouble.onset_s - EARLY_S, trouble.end_s)
    time_s, share = run.shares.time_s[window], run.shares.share[trouble.endpoint, window]
    gone = share <= HALF
    if not len(share) or gone.all() or not gone.any():
        return None
    before = np.flatnonzero(time_s <= trouble.onset_s)
    if len(before) and gone[before[-1]]:
        # It was away when the incident began: since when?
        stayed = np.flatnonzero(~gone[: before[-1] + 1])
        return -EARLY_S if not len(stayed) else float(time_s[stayed[-1] + 1]) - trouble.onset_s
    after = np.flatnonzero(gone & (time_s > trouble.onset_s))
    return float(time_s[after[0]]) - trouble.onset_s if len(after) else None
