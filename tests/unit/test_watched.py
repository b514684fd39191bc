"""The checks of the seeded runs can fail: an engine, a policy or a record that breaks an invariant is caught."""

# ruff: noqa: ARG002 - a Policy takes what the protocol gives it

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

from routing.actions import Action, Finished, Probe
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import Decision, Plan, decide
from routing.policy import BudgetPolicy, FailbackKind, FailbackPolicy, Policy
from routing.snapshot import Candidate, Facts, Snapshot
from routing.window import Window
from sim.arena.incidents import ArenaKind
from sim.arena.log import Log
from sim.arena.loop import run
from sim.arena.policy import ArenaRequest, Attempted
from sim.arena.referee import ArenaInvariantError
from sim.arena.scenario import Arrivals, Endpoint, Scenario, Scripted
from sim.arena.truth import World, make_world
from sim.policies.routecast import MODEL
from tests.policy_driver import endpoints
from tests.watched import (
    BrokenError,
    Recorded,
    Watched,
    check_log,
    check_memory,
    check_numbers,
    check_replay,
    check_service,
    check_shares,
    size_of,
)

STEPWISE = Policy(failback=FailbackPolicy(FailbackKind.CANARY, steps=(0.1, 0.3, 0.6), step_s=5.0))


def stormy(probability: float | None = None) -> World:
    """Return three minutes in which the first of two endpoints fails, recovers, and fails again."""
    incidents = tuple(
        Scripted(kind=ArenaKind.ABRUPT, endpoint="e0", at_s=at_s, hold_s=20, probability=probability)
        for at_s in (20, 90)
    )
    scenario = Scenario(
        name="storm", description="", duration_s=180, arrivals=Arrivals(rate_per_s=6), incidents=incidents,
        endpoints=tuple(
            Endpoint(id=f"e{i}", provider=f"p{i}", region="eu", ttft_ms=300, usd_per_mtok=1.0) for i in range(2)
        ),
    )  # fmt: skip
    return make_world(scenario, 3)


def play(policy: Watched, world: World) -> None:
    run(world, policy, check=True)
    policy.close()


def test_the_shipped_engine_passes() -> None:
    world = stormy()
    policy = Watched(world.endpoints, STEPWISE)
    play(policy, world)
    assert policy.seen["breach"] == 2
    assert policy.seen["plan_done"] == 2
    assert policy.seen["replayed"] > 50


class Hasty(Recorded):
    """Ends every hold at the next tick."""

    def tick(self, now: float) -> list[Action]:
        for name in self.catalogue.endpoints:
            self.health_of(name).held_until = now
        return super().tick(now)


class Rushed(Recorded):
    """Takes every step of a return at once."""

    def tick(self, now: float) -> list[Action]:
        for name in self.catalogue.endpoints:
            self.health_of(name).step_since -= 60.0
        return super().tick(now)


class Stale(Recorded):
    """Shows the first snapshot for ever."""

    @property
    def snapshot(self) -> Snapshot:
        if not hasattr(self, "_first"):
            self._first = super().snapshot
        return self._first


class Sticky(Recorded):
    """Remembers the plans of one snapshot beyond its end."""

    @property
    def snapshot(self) -> Snapshot:
        current = super().snapshot
        if not hasattr(self, "_plans"):
            self._plans = current.plans
        return replace(current, plans=self._plans)


class Silent(Recorded):
    """Keeps what happens on the request path to itself."""

    def finished(self, result: Finished, now: float) -> list[Action]:
        listener, self.listener = self.listener, lambda _: None
        actions = super().finished(result, now)
        self.listener = listener
        return actions


class Nervous(Recorded):
    """Probes those who serve."""

    def tick(self, now: float) -> list[Action]:
        actions = super().tick(now)
        self.listener(Probe(self.catalogue.endpoint("e1")))
        return actions


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Hasty, "leaves ejected by ejection_over after"),
        (Rushed, "leaves canary by (step_proven|plan_done) after"),
        (Stale, "e0 is ejected and gets requests"),
        (Sticky, "e0 is ejected and gets requests|replayed"),
        (Silent, "but was unknown"),
        (Nervous, "a probe of an endpoint that is"),
    ],
)
def test_an_engine_that_breaks_an_invariant_is_caught(engine: type[Recorded], message: str) -> None:
    world = stormy()
    with pytest.raises(BrokenError, match=message):
        play(Watched(world.endpoints, STEPWISE, make_engine=engine), world)


class Spendthrift(Watched):
    """Retries whatever it costs."""

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        return 0.0 if len(made) < 2 else None

    def is_reroute(self, made: Sequence[Attempted], now: float) -> bool:
        return False


class Stubborn(Watched):
    """Sends everything to the first endpoint."""

    def decide(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> Decision:
        decision = super().decide(request, tried, now, draw)
        first = decide(self.engine.snapshot, RouteRequest(MODEL), now, draw).considered
        self._last = replace(decision, chosen=next(c.candidate for c in first if c.candidate.facts.endpoint.order == 0))
        return self._last


def test_retries_beyond_the_engine_s_budget_are_caught() -> None:
    """F-02: with 20 % of the requests of ten seconds and one, a half-failing endpoint overdraws at once."""
    world = stormy(probability=0.5)
    frugal = Policy(budget=BudgetPolicy(retry_share=0.05, retry_floor_per_s=0.1))
    play(Watched(world.endpoints, frugal), world)
    with pytest.raises(ArenaInvariantError, match="beyond the budget"):
        play(Spendthrift(world.endpoints, frugal), world)


def test_a_policy_that_sends_requests_to_whoever_is_out_is_caught() -> None:
    world = stormy()
    with pytest.raises(BrokenError, match=r"was tried and is chosen again|is ejected and gets"):
        play(Stubborn(world.endpoints, STEPWISE), world)


# Records, broken by hand.


def decided(*, out: bool = False) -> tuple[Watched, Decision]:
    """Return a policy over three endpoints and a decision of its engine; with `out`, the first is ejected and the
    second drained.
    """
    policy = Watched(endpoints(3), Policy())
    if out:
        for number in range(9):
            policy.engine.started("e0", f"a{number}", 0.0)
            policy.engine.finished(Finished("e0", f"a{number}", Outcome.SERVER_ERROR), 0.5)
        policy.engine.drain("e1", "kim", 0.5)
    policy.engine.tick(1.0)
    return policy, decide(policy.engine.snapshot, RouteRequest(MODEL), 1.0, 0.5)


def with_plan(change: Callable[[Plan], Plan]) -> Callable[[Decision], Decision]:
    return lambda decision: replace(decision, plan=change(decision.plan))


def with_share(share: float) -> Callable[[Decision], Decision]:
    return with_plan(lambda p: replace(p, considered=(replace(p.considered[0], share=share), *p.considered[1:])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_share(0.9), "shares sum to 0.9"),
        (with_share(1.1), "has a share of 1.1"),
        (with_share(nan), "has a share of nan"),
        (with_share(-0.1), "has a share of -0.1"),
        (
            with_plan(lambda p: replace(p, considered=(replace(p.considered[0], exclusion="no"), *p.considered[1:]))),
            "is excluded and has a share of 1.0",
        ),
        (lambda d: replace(d, chosen=None), "nobody was chosen, and shares sum to 1"),
        (lambda d: replace(d, propensity=0.0), "chosen with a probability of 0.0"),
    ],
)
def test_shares_that_are_none_are_caught(change: Callable[[Decision], Decision], message: str) -> None:
    _, decision = decided()
    check_shares(decision)
    with pytest.raises(BrokenError, match=message):
        check_shares(change(decision))


def choose(decision: Decision, name: str, blocked_until: float = 0.0) -> Decision:
    """Return the decision with another endpoint chosen."""
    found = next(c.candidate for c in decision.considered if c.candidate.facts.endpoint.id == name)
    return replace(decision, chosen=replace(found, facts=replace(found.facts, blocked_until=blocked_until)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: choose(d, "e0"), "e0 is ejected and gets requests"),
        (lambda d: choose(d, "e1"), "e1 is drained and gets requests"),
        (lambda d: choose(d, "e2", blocked_until=9.0), "asked for patience until 9.0"),
        (lambda d: replace(d, request=replace(d.request, excluded=frozenset({"e2"}))), "was tried and is chosen again"),
        (with_plan(lambda p: replace(p, panic=True)), r"panic at 1.0, though \['e2'\] may serve"),
    ],
)
def test_a_choice_of_somebody_who_may_not_serve_is_caught(change: Callable[[Decision], Decision], message: str) -> None:
    policy, decision = decided(out=True)
    check_service(decision, policy.engine.health_of)
    with pytest.raises(BrokenError, match=message):
        check_service(change(decision), policy.engine.health_of)


def test_a_decision_that_its_record_does_not_give_again_is_caught() -> None:
    policy, decision = decided()
    check_replay(decision, policy.engine.snapshot)
    with pytest.raises(BrokenError, match="replayed"):
        check_replay(choose(decision, "e1"), policy.engine.snapshot)


def snapshot_with(candidate: Candidate) -> Snapshot:
    snapshot = decided()[0].engine.snapshot
    (objective, *_) = snapshot.rankings[MODEL]
    return replace(snapshot, rankings={MODEL: {objective: (candidate,)}})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("admission", 1.5), ("admission", nan), ("error_rate", nan), ("latency_ratio", inf), ("latency_ratio", 0.0),
        ("latency_s", nan), ("blocked_until", nan), ("risk", nan), ("quota_share", -0.1), ("in_flight", -1),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_caught(name: str, value: float) -> None:
    candidate = decided()[0].engine.snapshot.candidates(MODEL)[0]
    check_numbers(snapshot_with(candidate))
    facts: Facts = replace(candidate.facts, **{name: value})  # type: ignore[arg-type]  # any of its numbers
    with pytest.raises(BrokenError, match=f"{name}|limited until|in flight"):
        check_numbers(snapshot_with(replace(candidate, facts=facts)))


def test_a_score_that_is_none_is_caught() -> None:
    candidate = decided()[0].engine.snapshot.candidates(MODEL)[0]
    for broken in (replace(candidate, score=nan), replace(candidate, contributions={"price": 2.0})):
        with pytest.raises(BrokenError, match=r"score|price"):
            check_numbers(snapshot_with(broken))


class Hoarding(Window):
    """Keeps every attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[str] = []

    def started(self, attempt_id: str, now: float, *, streamed: bool = True) -> None:
        super().started(attempt_id, now, streamed=streamed)
        self.kept.append(attempt_id)


def test_a_window_that_grows_with_what_is_over_is_caught() -> None:
    least = size_of(Window())
    for window in (Window(), Hoarding()):
        for number in range(2000):
            window.started(f"a{number}", number / 10)
            window.finished(f"a{number}", Outcome.OK, number / 10, ttft_s=0.1)
        if isinstance(window, Hoarding):
            with pytest.raises(BrokenError, match="has grown to"):
                check_memory(window, least)
        else:
            check_memory(window, least)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ttft_s", nan, "no first token in time"),
        ("ttft_s", 61.0, "no first token in time"),
        ("ttft_s", -0.1, "no first token in time"),
        ("cost_usd", nan, "cost_usd"),
        ("cost_usd", -1.0, "cost_usd"),
        ("attempts", 0, "took no attempt"),
        ("hedged", True, "a hedge is no attempt"),
    ],
)
def test_a_record_that_cannot_be_is_caught(name: str, value: float, message: str) -> None:
    world = make_world(replace(stormy().scenario, incidents=(), recurring=()), 3)
    log: Log = run(world, Watched(world.endpoints, Policy()), check=True)
    first = np.flatnonzero((~log.failed) & (log.attempts == 1))[0]
    check_log(log, 60.0)
    getattr(log, name)[first] = value
    with pytest.raises(BrokenError, match=message):
        check_log(log, 60.0)
