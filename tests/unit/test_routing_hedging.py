"""When a second attempt may start beside one that keeps its caller waiting, and when not."""

from dataclasses import replace
from math import exp
from random import Random

import pytest

from routing.actions import Finished
from routing.budget import ModelBudget
from routing.health import State
from routing.hedging import Hedge, expected_cost_usd, hedge, is_evidence
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.policy import BudgetPolicy, HedgePolicy, HedgeScope, Policy
from routing.snapshot import Facts
from routing.window import Window
from tests.decisions import NOW, decision, facts, snapshot
from tests.routing_world import MODEL, endpoint, engine_of

POLICY = Policy(hedge=HedgePolicy(after_quantile=0.95, after_ratio=1.5, doubt_quantile=0.5, floor_s=0.1))


def _window(*ttfts_s: float) -> Window:
    window = Window()
    for number, ttft_s in enumerate(ttfts_s):
        window.started(str(number), NOW - 100)
        window.finished(str(number), Outcome.OK, NOW - 100 + ttft_s, ttft_s=ttft_s)
    return window


# Median 0.4 s, 95th percentile 0.77 s.
USUAL = _window(*[0.4 * Random(3 + i).lognormvariate(0.0, 0.4) for i in range(2000)])
LATE_S = 1.5 * 0.4 * exp(1.645 * 0.4)


def _hedge(
    *known: Facts,
    window: Window = USUAL,
    policy: Policy = POLICY,
    threshold: float | None = None,
    idempotent: bool = True,
    asked: bool = True,
) -> Hedge:
    known = known or (facts("a"), facts("b", 1))
    chosen = decision(*known)
    return hedge(
        chosen, snapshot(*known, threshold=threshold), window, policy, idempotent=idempotent, asked=asked, streamed=True
    )


def test_a_hedge_starts_well_after_the_endpoint_s_own_95th_percentile() -> None:
    assert _hedge().delay_s == pytest.approx(LATE_S, rel=0.05)


def test_a_young_endpoint_is_judged_by_what_there_is_of_it() -> None:
    assert _hedge(window=_window(*[0.5] * 9)).delay_s == pytest.approx(0.75, rel=0.05)


def test_never_before_the_floor() -> None:
    assert _hedge(window=_window(*[0.01] * 30)) == Hedge(0.1)


@pytest.mark.parametrize(
    ("chosen", "threshold"),
    [
        (facts("a", state=State.DEGRADED), None),
        (facts("a", state=State.CANARY), None),
        (facts("a", risk=0.5), 0.5),
        (facts("a", risk=0.25), 0.5),
    ],
)
def test_f09_an_endpoint_in_doubt_is_given_only_its_median(chosen: Facts, threshold: float | None) -> None:
    assert _hedge(chosen, facts("b", 1), threshold=threshold).delay_s == pytest.approx(0.4, rel=0.05)


@pytest.mark.parametrize(("risk", "threshold"), [(0.24, 0.5), (0.9, None), (None, 0.5)])
def test_a_risk_that_would_let_it_return_is_no_doubt(risk: float | None, threshold: float | None) -> None:
    assert _hedge(facts("a", risk=risk), facts("b", 1), threshold=threshold).delay_s == pytest.approx(LATE_S, rel=0.05)


def test_f04_a_request_that_must_not_run_twice_is_never_hedged() -> None:
    always = replace(POLICY, hedge=HedgePolicy(HedgeScope.ALWAYS))
    assert _hedge(idempotent=False, policy=always) == Hedge(None, "the request is not idempotent")


@pytest.mark.parametrize(
    ("scope", "asked", "hedged"),
    [
        (HedgeScope.NEVER, True, False),
        (HedgeScope.ASKED, True, True),
        (HedgeScope.ASKED, False, False),
        (HedgeScope.ALWAYS, False, True),
    ],
)
def test_who_is_hedged_is_the_policy_s_and_the_caller_s_choice(scope: HedgeScope, asked: bool, hedged: bool) -> None:
    found = _hedge(policy=replace(POLICY, hedge=HedgePolicy(scope)), asked=asked)
    assert (found.delay_s is not None) is hedged
    assert found.refusal == ("" if hedged else f"hedging is {scope.value}, and the caller did not ask for it")


@pytest.mark.parametrize(
    ("known", "refusal"),
    [
        ((facts("a"),), "no other endpoint is free"),
        ((facts("a"), facts("b", 1, state=State.EJECTED)), "no other endpoint is free"),
        ((facts("a"), facts("b", 1, blocked_until=NOW + 9)), "no other endpoint is free"),
        ((facts("a"), facts("b", 1, quota_share=0.1)), "no other endpoint is free"),
        ((facts("a", state=State.EJECTED), facts("b", 1, state=State.EJECTED)), "no endpoint is healthy"),
        (
            (facts("a"), facts("b", 1, quota_share=0.1), facts("c", 2, blocked_until=NOW + 9)),
            "most endpoints of the model are overloaded",
        ),
    ],
)
def test_a_hedge_never_adds_load_to_trouble(known: tuple[Facts, ...], refusal: str) -> None:
    assert _hedge(*known) == Hedge(None, refusal)


def test_without_a_normal_there_is_no_hedge() -> None:
    assert _hedge(window=Window()) == Hedge(None, "what is usual for the endpoint is not known")


def test_a_decision_without_an_endpoint_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="expected a decision that chose an endpoint"):
        _hedge(facts("a", state=State.DRAINING))


def test_c05_a_hedge_is_priced_by_the_request_s_input_and_the_usual_output() -> None:
    priced = endpoint("b", input_usd_per_mtok=2.0, output_usd_per_mtok=10.0)
    assert expected_cost_usd(priced, RouteRequest(MODEL, input_tokens=1000), 200.0) == pytest.approx(0.004)
    assert expected_cost_usd(endpoint("b"), RouteRequest(MODEL, input_tokens=1000), 200.0) == 0.0


def test_a_steady_tail_leaves_most_of_the_budget_for_a_bad_hour() -> None:
    """With lognormal waits as measured, the shipped delay hedges less than half of what the shipped share allows."""
    rng, policy = Random(7), Policy()
    waits = [0.4 * rng.lognormvariate(0.0, 0.4) for _ in range(5000)]
    delay_s = _hedge(window=_window(*waits), policy=policy).delay_s
    assert delay_s is not None
    assert 0.0 < sum(wait > delay_s for wait in waits) / len(waits) < policy.hedge.max_share / 2
    budget = ModelBudget(BudgetPolicy(), policy.hedge)
    for second in range(300):
        for _ in range(50):
            budget.requested(NOW + second)
    hedged = 0
    while not budget.take_hedge(0.0, NOW + 300):
        hedged += 1
    assert hedged >= 600, "twelve seconds of 50 requests a second, when the endpoint hangs"


def test_f09_only_a_long_wait_in_vain_speaks_against_an_endpoint() -> None:
    """A doubted endpoint is hedged at its median, which half of its healthy answers exceed."""
    for waited_s, speaks in ((0.45, False), (LATE_S * 0.9, False), (LATE_S * 1.1, True)):
        assert is_evidence(USUAL, POLICY.hedge, waited_s, NOW, streamed=True) is speaks
    assert not is_evidence(Window(), POLICY.hedge, 60.0, NOW, streamed=True)


def test_f12_hedges_do_not_hide_a_hanging_endpoint_from_its_health() -> None:
    """Nothing that is called off grows old, so the waits in vain must speak: a few of them eject."""
    engine = engine_of("a", "b", policy=POLICY)
    rng, now = Random(5), 0.0
    for _ in range(300):
        now += 0.5
        engine.started("a", "x", now)
        engine.finished(Finished("a", "x", Outcome.OK, ttft_s=0.4 * rng.lognormvariate(0.0, 0.2)), now)
        engine.tick(now)
    vain = 0
    while engine.health_of("a").state is State.ACTIVE:
        vain += 1
        assert vain < 15
        now += 0.2
        engine.started("a", "x", now - 1.2)
        engine.finished(Finished("a", "x", Outcome.CANCELLED, ttft_s=1.2), now)
    assert vain >= 3, "one slow answer is no hang"
    assert engine.health_of("a").state is State.EJECTED


def test_a_caller_who_leaves_says_nothing_of_the_endpoint() -> None:
    engine = engine_of("a", policy=POLICY)
    before = engine.window_of("a").sums(0.0, 60).latency_samples
    for _ in range(50):
        engine.started("a", "x", 0.0)
        assert engine.finished(Finished("a", "x", Outcome.CANCELLED), 60.0) == []
    assert engine.window_of("a").sums(60.0, 60).latency_samples == before
