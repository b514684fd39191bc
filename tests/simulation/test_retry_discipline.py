"""The retry budget in the arena: callers do not feel it while another endpoint is well, and providers do when none is.

Proves F-02, L-07 and L-13 for the core, with the shipped policy and a referee that counts retries by itself.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from routing.policy import BudgetPolicy, Policy
from sim.arena.incidents import ArenaKind
from sim.arena.log import Log
from sim.arena.loop import run
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted
from sim.arena.scenario import Arrivals, Endpoint, Scenario, Scripted
from sim.arena.truth import make_world
from sim.policies.routecast import Routecast

ENDPOINTS = tuple(
    Endpoint(id=name, provider=f"provider-{name}", region="eu", ttft_ms=ttft_ms, usd_per_mtok=1)
    for name, ttft_ms in (("a", 300), ("b", 400), ("c", 500))
)
UNLIMITED = Policy(budget=BudgetPolicy(retry_share=1e3, retry_floor_per_s=1e6, max_waiting=10**6))
TROUBLE_S = {10: 60, 50: 30, 200: 15}


def _scenario(rate_per_s: int, *incidents: Scripted) -> Scenario:
    return Scenario(
        name="budget", description="", duration_s=60 + TROUBLE_S[rate_per_s], deadline_s=120.0, endpoints=ENDPOINTS,
        arrivals=Arrivals(rate_per_s=rate_per_s), incidents=incidents,
    )  # fmt: skip


@cache
def _log(kind: ArenaKind, rate_per_s: int, policy: Policy) -> Log:
    incident = Scripted(kind=kind, at_s=45, hold_s=TROUBLE_S[rate_per_s], endpoint="a")
    world = make_world(_scenario(rate_per_s, incident), 3)
    return run(world, Routecast(world.endpoints, policy), check=True)


@pytest.mark.parametrize("rate_per_s", TROUBLE_S)
@pytest.mark.parametrize("kind", [ArenaKind.ABRUPT, ArenaKind.HANG, ArenaKind.RATE_LIMIT])
def test_f02_no_caller_pays_for_the_budget_while_another_endpoint_is_well(kind: ArenaKind, rate_per_s: int) -> None:
    budgeted, unlimited = _log(kind, rate_per_s, Policy()), _log(kind, rate_per_s, UNLIMITED)
    assert (budgeted.attempts > 1).any(), "there was something to retry"
    assert budgeted.failed.sum() <= unlimited.failed.sum()
    assert budgeted.failed.mean() <= 0.0005


def test_l13_when_every_endpoint_fails_the_load_on_them_stays_near_one_attempt_per_request() -> None:
    """Three attempts are allowed per request, but of all requests together only 1.2, and a floor."""
    outages = [Scripted(kind=ArenaKind.ABRUPT, at_s=0, hold_s=120, endpoint=e.id) for e in ENDPOINTS]
    world = make_world(_scenario(200, *outages), 3)
    sent = {}
    for policy in (Policy(), UNLIMITED):
        log = run(world, Routecast(world.endpoints, policy), check=policy is not UNLIMITED)
        assert log.failed.all()
        sent[policy] = log.attempts.sum() / len(log.attempts)
    assert sent[Policy()] <= 1.2 + 10 / 200 + 0.05
    assert sent[UNLIMITED] > 2.4


def test_f02_a_smaller_budget_would_be_felt() -> None:
    """So the first test can fail: without share and floor, only leaving an ejected endpoint is free."""
    none = replace(Policy(), budget=BudgetPolicy(retry_share=0.0, retry_floor_per_s=0.0))
    assert _log(ArenaKind.ABRUPT, 50, none).failed.sum() > _log(ArenaKind.ABRUPT, 50, Policy()).failed.sum()


class _Witness(Routecast):
    """Notes how early an attempt came, where its own request had been told to stay away, and how long requests wait."""

    def __init__(self, endpoints: Sequence[ArenaEndpoint]) -> None:
        super().__init__(endpoints)
        self.early_s: list[float] = []
        self.again = 0
        self.waited_s: defaultdict[int, float] = defaultdict(float)
        self._not_before: dict[tuple[str, int], float] = {}

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        super().started(endpoint, attempt_id, now)
        asked = self._not_before.get((attempt_id.partition(".")[0], endpoint))
        if asked is not None:
            self.again += 1
            self.early_s.append(asked - now)

    def finished(self, attempted: Attempted, now: float) -> None:
        super().finished(attempted, now)
        if attempted.retry_after_s is not None:
            place = attempted.attempt_id.partition(".")[0], attempted.endpoint
            self._not_before[place] = now + attempted.retry_after_s

    def wait_s(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        pause_s = super().wait_s(request, made, now, draw)
        self.waited_s[request.number] += pause_s or 0.0
        return pause_s


@pytest.mark.parametrize("retry_after_s", [0.6, 1.5])
def test_l13_nobody_is_asked_before_the_time_it_named_to_that_request(retry_after_s: float) -> None:
    """Limits everywhere that refuse some and serve others: an endpoint stays in service, and yet whoever it refused
    stays away for as long as it was told, and does not wait for ever.
    """
    limits = [
        Scripted(
            kind=ArenaKind.RATE_LIMIT, at_s=10, climb_s=30, hold_s=40, probability=0.5, retry_after_s=retry_after_s,
            endpoint=e.id,
        )
        for e in ENDPOINTS
    ]  # fmt: skip
    world = make_world(_scenario(50, *limits), 3)
    witness = _Witness(world.endpoints)
    run(world, witness, check=True)
    assert witness.again > 20
    assert max(witness.early_s) <= 0.0
    assert 0.0 < max(witness.waited_s.values()) <= Policy().budget.max_wait_s
