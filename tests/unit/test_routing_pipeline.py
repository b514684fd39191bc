"""One decision: who is excluded and why, who is tried in which order, and that it can be computed again.

Proves C-06: preferred provider, and every objective.
"""

import random
from dataclasses import replace
from math import inf

import pytest

from routing.errors import RequestError, UnknownModelError
from routing.health import State
from routing.model import Capability, Catalogue, Objective, RegionPolicy, RouteRequest
from routing.pipeline import Decision, decide, in_order
from routing.ranking import Ranking
from routing.snapshot import Facts, Snapshot
from tests.routing_world import MODEL, endpoint

NOW = 1000.0


def _facts(name: str, order: int = 0, **changes: object) -> Facts:
    values: dict[str, object] = {
        "endpoint": endpoint(name, order),
        "state": State.ACTIVE,
        "admission": 1.0,
        "blocked_until": 0.0,
        "error_rate": 0.0,
        "latency_s": 0.3,
        "latency_ratio": 1.0,
        "in_flight": 0,
        "risk": None,
    }
    return Facts(**(values | changes))  # type: ignore[arg-type]  # built by keyword from a table


def _snapshot(*facts: Facts, version: int = 5) -> Snapshot:
    smallest = min(f.endpoint.context_window_tokens or inf for f in facts)
    return Snapshot(version, NOW, {MODEL: Ranking(facts)}, "", None, {MODEL: smallest})


def _chosen(decision: Decision) -> str:
    return decision.chosen.facts.endpoint.id if decision.chosen else ""


def _exclusions(decision: Decision) -> dict[str, tuple[str, str]]:
    return {c.candidate.facts.endpoint.id: (c.excluded_by, c.exclusion) for c in decision.considered if c.exclusion}


def _out(name: str, order: int, state: State = State.EJECTED) -> Facts:
    return _facts(name, order, state=state, admission=0.0)


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999999])
def test_f02_the_configured_order_decides(draw: float) -> None:
    decision = decide(_snapshot(_facts("first", 0), _facts("second", 1)), RouteRequest(MODEL), NOW, draw)
    assert (_chosen(decision), decision.propensity, decision.snapshot_version) == ("first", 1.0, 5)
    assert [c.share for c in decision.considered] == [1.0, 0.0]


@pytest.mark.parametrize("state", [State.EJECTED, State.PROBING, State.DRAINING])
def test_f01_an_endpoint_that_is_out_gets_nothing(state: State) -> None:
    decision = decide(_snapshot(_out("first", 0, state), _facts("second", 1)), RouteRequest(MODEL), NOW, 0.0)
    assert _chosen(decision) == "second"
    assert _exclusions(decision) == {"first": ("out_of_service", f"health state is {state.value}")}


def test_every_exclusion_is_told() -> None:
    snapshot = _snapshot(
        _facts("tried"),
        _facts("narrow", 1, endpoint=endpoint("narrow", 1, context_window_tokens=4096)),
        _facts("limited", 2, blocked_until=NOW + 2.5),
        _facts("plain", 3, endpoint=endpoint("plain", 3, capabilities=frozenset({Capability.CHAT}))),
        _facts("whole", 4),
    )
    request = RouteRequest(
        MODEL, needs=frozenset({Capability.STREAMING}), input_tokens=5000, excluded=frozenset({"tried"})
    )
    decision = decide(snapshot, request, NOW, 0.0)
    assert _chosen(decision) == "whole"
    assert _exclusions(decision) == {
        "tried": ("already_tried", "already tried for this request"),
        "narrow": ("beyond_context", "context window 4096 tokens is less than the request's 5000"),
        "plain": ("lacks_capability", "lacks streaming"),
        "limited": ("rate_limited", "rate limited until 1002.500 (unix time)"),
    }


def test_a_request_that_just_fits_is_not_refused() -> None:
    exact = _facts("exact", endpoint=endpoint("exact", context_window_tokens=5000))
    assert _chosen(decide(_snapshot(exact), RouteRequest(MODEL, input_tokens=5000), NOW, 0.0)) == "exact"


def test_the_preferred_provider_goes_first_while_it_is_in_good_health() -> None:
    request = RouteRequest(MODEL, preferred_provider="second", affine_endpoint="third")
    good = _snapshot(_facts("first"), _facts("second", 1), _facts("third", 2))
    assert _chosen(decide(good, request, NOW, 0.5)) == "second"
    doubtful = _snapshot(_facts("first"), _facts("second", 1, state=State.DEGRADED, admission=0.1))
    assert _chosen(decide(doubtful, request, NOW, 0.5)) == "first"


@pytest.mark.parametrize(
    "request_",
    [RouteRequest(MODEL, preferred_provider="third"), RouteRequest(MODEL, affine_endpoint="third")],
)
@pytest.mark.parametrize("objective", Objective)
def test_c06_f05_every_objective_honours_preference_and_session(objective: Objective, request_: RouteRequest) -> None:
    snapshot = _snapshot(_facts("first", latency_s=0.1), _facts("second", 1), _facts("third", 2, latency_s=0.9))
    decision = decide(snapshot, replace(request_, objective=objective), NOW, 0.99)
    assert (_chosen(decision), decision.propensity) == ("third", 1.0)


def test_f05_a_session_stays_where_it_was() -> None:
    snapshot = _snapshot(_facts("first"), _facts("second", 1))
    assert _chosen(decide(snapshot, RouteRequest(MODEL, affine_endpoint="second"), NOW, 0.5)) == "second"
    gone = RouteRequest(MODEL, affine_endpoint="second", excluded=frozenset({"second"}))
    assert _chosen(decide(snapshot, gone, NOW, 0.5)) == "first"


@pytest.mark.parametrize(
    ("objective", "best"),
    [
        (Objective.ORDERED, "first"),
        (Objective.FASTEST, "fast"),
        (Objective.CHEAPEST, "cheap"),
        (Objective.RELIABLE, "sure"),
    ],
)
def test_c06_each_objective_ranks_by_what_it_names(objective: Objective, best: str) -> None:
    dear = {"input_usd_per_mtok": 10.0, "output_usd_per_mtok": 10.0}
    snapshot = _snapshot(
        _facts("first", 0, error_rate=0.2, endpoint=endpoint("first", 0, **dear)),
        _facts("fast", 1, latency_s=0.1, error_rate=0.1, endpoint=endpoint("fast", 1, **dear)),
        _facts("cheap", 2, error_rate=0.1, endpoint=endpoint("cheap", 2, input_usd_per_mtok=1.0)),
        _facts("sure", 3, endpoint=endpoint("sure", 3, **dear)),
    )
    assert _chosen(decide(snapshot, RouteRequest(MODEL, objective=objective), NOW, 0.5)) == best


def test_f07_when_all_are_out_the_decision_panics_and_serves() -> None:
    decision = decide(_snapshot(_out("first", 0), _out("second", 1)), RouteRequest(MODEL), NOW, 0.7)
    assert decision.panic
    assert _chosen(decision) == "first"
    assert sum(c.share for c in decision.considered) == 1.0


def test_f07_panic_takes_the_one_on_its_way_back_then_the_one_that_fails_least() -> None:
    worst, best = _out("worst", 0), replace(_out("best", 1), error_rate=0.1)
    worst = replace(worst, error_rate=0.9)
    decision = decide(_snapshot(worst, best), RouteRequest(MODEL), NOW, 0.0)
    assert [c.candidate.facts.endpoint.id for c in decision.considered] == ["best", "worst"]
    returning = replace(_out("returning", 2, State.PROBING), error_rate=1.0)
    decision = decide(_snapshot(worst, best, returning), RouteRequest(MODEL), NOW, 0.0)
    assert [c.candidate.facts.endpoint.id for c in decision.considered] == ["returning", "best", "worst"]
    assert (decision.panic, _chosen(decision), decision.propensity) == (True, "returning", 1.0)


def test_f07_a_failed_request_in_panic_tries_the_next_best() -> None:
    snapshot = _snapshot(_out("a", 0), _out("b", 1))
    decision = decide(snapshot, RouteRequest(MODEL, excluded=frozenset({"a"})), NOW, 0.0)
    assert (decision.panic, _chosen(decision)) == (True, "b")


def test_f21_what_an_operator_took_out_stays_out_even_in_panic() -> None:
    drained = _out("drained", 0, State.DRAINING)
    decision = decide(_snapshot(drained, _out("out", 1)), RouteRequest(MODEL), NOW, 0.0)
    assert (decision.panic, _chosen(decision)) == (True, "out")
    assert _exclusions(decision) == {"drained": ("out_of_service", "health state is draining")}
    alone = decide(_snapshot(drained), RouteRequest(MODEL), NOW, 0.0)
    assert (alone.chosen, alone.retry_after_s) == (None, None), "no wait brings a drained endpoint back"


def test_f07_a_drained_endpoint_beside_a_limited_one_tells_when_the_limit_ends() -> None:
    snapshot = _snapshot(_out("drained", 0, State.DRAINING), _facts("limited", 1, blocked_until=NOW + 3))
    decision = decide(snapshot, RouteRequest(MODEL), NOW + 1, 0.0)
    assert (decision.chosen, decision.retry_after_s) == (None, 2.0)


def test_f07_panic_leaves_a_rate_limited_provider_in_peace() -> None:
    limited, out = _facts("limited", blocked_until=NOW + 9), _out("out", 1)
    decision = decide(_snapshot(limited, out), RouteRequest(MODEL), NOW, 0.0)
    assert (decision.panic, _chosen(decision)) == (True, "out")
    assert "limited" in _exclusions(decision)


def test_f07_all_rate_limited_tells_when_the_first_limit_ends() -> None:
    snapshot = _snapshot(_facts("a", blocked_until=NOW + 9), _facts("b", 1, blocked_until=NOW + 4))
    decision = decide(snapshot, RouteRequest(MODEL), NOW, 0.0)
    assert (decision.chosen, decision.retry_after_s, decision.propensity) == (None, 4.0, 0.0)
    assert len(_exclusions(decision)) == 2
    assert _chosen(decide(snapshot, RouteRequest(MODEL), NOW + 4.0, 0.0)) == "b"


def test_f07_request_filters_never_give_way() -> None:
    decision = decide(_snapshot(_facts("a")), RouteRequest(MODEL, excluded=frozenset({"a"})), NOW, 0.0)
    assert (decision.chosen, decision.panic, decision.retry_after_s) == (None, False, None)


def test_an_unknown_model_is_told_with_the_known_ones() -> None:
    with pytest.raises(UnknownModelError, match="unknown model 'gpt-9'; known models: openai/gpt-4"):
        decide(_snapshot(_facts("a")), RouteRequest("gpt-9"), NOW, 0.0)


@pytest.mark.parametrize("objective", Objective)
@pytest.mark.parametrize("draw", [0.0, 0.33, 0.8, 0.999])
def test_a_decision_can_be_computed_again_from_its_own_record(objective: Objective, draw: float) -> None:
    snapshot = _snapshot(
        _facts("a", 0, state=State.CANARY, admission=0.3, latency_s=0.5),
        _facts("b", 1, latency_s=0.2, error_rate=0.1),
        _out("c", 2),
        _facts("d", 3, blocked_until=NOW + 5, risk=0.4),
    )
    request = RouteRequest(MODEL, objective=objective, affine_endpoint="b")
    decision = decide(snapshot, request, NOW, draw)
    recorded = sorted((c.candidate.facts for c in decision.considered), key=lambda f: f.endpoint.order)
    again = decide(_snapshot(*recorded, version=decision.snapshot_version), decision.request, decision.time, draw)
    assert again == decision


@pytest.mark.parametrize("before", [True, False])
def test_a_plan_never_outlives_a_rate_limit_s_end(before: bool) -> None:
    snapshot = _snapshot(_facts("limited", blocked_until=NOW + 5), _facts("later", 1, blocked_until=NOW + 9))
    request = RouteRequest(MODEL)
    if before:
        early = decide(snapshot, request, NOW + 4.999, 0.0)
        assert early.chosen is None
        assert early.retry_after_s == pytest.approx(0.001)
    assert _chosen(decide(snapshot, request, NOW + 5.0, 0.99)) == "limited"
    tried = replace(request, excluded=frozenset({"limited"}))
    assert _chosen(decide(snapshot, tried, NOW + 8.9, 0.0)) == ""
    assert _chosen(decide(snapshot, tried, NOW + 9.0, 0.0)) == "later"


def test_the_wait_is_counted_from_each_request_not_from_the_plan() -> None:
    snapshot = _snapshot(_facts("a", blocked_until=NOW + 9))
    waits = [decide(snapshot, RouteRequest(MODEL), NOW + after_s, 0.0).retry_after_s for after_s in (0.0, 4.0, 8.5)]
    assert waits == [9.0, 5.0, 0.5]


def test_a_remembered_plan_decides_as_a_new_one_would() -> None:
    facts = (
        _facts("canary", 0, state=State.CANARY, admission=0.3, latency_s=0.5),
        _facts("narrow", 1, latency_s=0.2, endpoint=endpoint("narrow", 1, context_window_tokens=4096)),
        _out("out", 2),
        _facts("limited", 3, blocked_until=NOW + 5, risk=0.4),
        _facts("deaf", 4, endpoint=endpoint("deaf", 4, capabilities=frozenset({Capability.CHAT}))),
    )
    rng, remembering = random.Random(8), _snapshot(*facts)
    for i in range(3000):
        request = RouteRequest(
            MODEL,
            needs=frozenset({Capability.STREAMING}) if rng.random() < 0.5 else frozenset(),
            objective=rng.choice(list(Objective)),
            input_tokens=rng.choice([0, 4096, 4097, 9000]),
            preferred_provider=rng.choice(["", "canary", "narrow"]),
            affine_endpoint=rng.choice(["", "deaf", "limited"]),
            excluded=frozenset(rng.sample([f.endpoint.id for f in facts], rng.randint(0, 2))),
        )
        now, draw = NOW + i / 300, rng.random()
        recalled, anew = decide(remembering, request, now, draw), decide(_snapshot(*facts), request, now, draw)
        assert _without_words(recalled) == _without_words(anew)
    assert 0 < len(remembering.plans) < 3000, "plans were remembered"


def _without_words(decision: Decision) -> tuple[object, ...]:
    """All of a decision but the wording of its exclusions, which counts the seconds from the plan's making."""
    considered = [(c.candidate, c.share, c.excluded_by) for c in decision.considered]
    drawn = (decision.request, decision.time, decision.draw, decision.chosen, decision.propensity)
    return (*drawn, decision.panic, decision.retry_after_s, considered)


def test_what_is_remembered_is_bounded() -> None:
    snapshot = _snapshot(_facts("narrow", endpoint=endpoint("narrow", context_window_tokens=1)))
    for tokens in range(2, 6000):
        assert decide(snapshot, RouteRequest(MODEL, input_tokens=tokens), NOW, 0.0).chosen is None
    assert len(snapshot.plans) == 4096


def test_f20_the_static_order_needs_no_snapshot() -> None:
    catalogue = Catalogue.of([endpoint("b", 1), endpoint("a", 0), replace(endpoint("c", 2), capabilities=frozenset())])
    request = RouteRequest(MODEL, needs=frozenset({Capability.CHAT}), excluded=frozenset({"a"}))
    decision = in_order(catalogue, request, NOW)
    assert (_chosen(decision), decision.propensity, decision.panic) == ("b", 1.0, True)
    assert set(_exclusions(decision)) == {"a", "c"}
    nobody = in_order(catalogue, replace(request, excluded=frozenset("abc")), NOW)
    assert (nobody.chosen, nobody.propensity) == (None, 0.0)
    with pytest.raises(UnknownModelError):
        in_order(catalogue, RouteRequest("gpt-9"), NOW)


def _in(region: str, name: str, order: int, **changes: object) -> Facts:
    return _facts(name, order, endpoint=endpoint(name, order, region=region), **changes)


def _shares(decision: Decision) -> dict[str, float]:
    return {c.candidate.facts.endpoint.id: c.share for c in decision.considered if not c.exclusion}


def test_f13_a_request_that_must_stay_never_leaves_its_region() -> None:
    snapshot = _snapshot(_in("us", "us-1", 0), _in("eu", "eu-1", 1, state=State.EJECTED, admission=0.0))
    request = RouteRequest(MODEL, region="eu", region_policy=RegionPolicy.STAY)
    decision = decide(snapshot, request, NOW, 0.5)
    assert (_chosen(decision), decision.panic) == ("eu-1", True), "a doubtful endpoint at home beats a refusal"
    assert _exclusions(decision)["us-1"] == ("outside_region", "region 'us': the request must stay in 'eu'")
    assert _chosen(decide(snapshot, replace(request, region="ap"), NOW, 0.5)) == ""


@pytest.mark.parametrize("objective", Objective)
def test_f13_a_preferred_region_serves_while_it_can_and_the_nearest_other_one_then(objective: Objective) -> None:
    home = _in("eu", "eu-1", 2, latency_s=0.9)
    others = (
        _in("ap", "ap-1", 0, latency_s=0.8),
        _in("us", "us-1", 1, latency_s=0.2),
        _in("sa", "sa-1", 3, latency_s=None),
    )
    request = RouteRequest(MODEL, objective=objective, region="eu", region_policy=RegionPolicy.PREFER)
    assert _shares(decide(_snapshot(home, *others), request, NOW, 0.0))["eu-1"] == 1.0
    out = replace(home, state=State.EJECTED, admission=0.0)
    away = decide(_snapshot(out, *others), request, NOW, 0.0)
    assert [c.candidate.facts.endpoint.id for c in away.considered if not c.exclusion] == ["us-1", "ap-1", "sa-1"]
    assert sum(_shares(away).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("objective", Objective)
def test_f13_a_region_on_its_way_back_shares_with_the_others_by_its_admission(objective: Objective) -> None:
    snapshot = _snapshot(
        _in("eu", "eu-1", 0, state=State.CANARY, admission=0.3), _in("us", "us-1", 1), _in("us", "us-2", 2)
    )
    request = RouteRequest(MODEL, objective=objective, region="eu", region_policy=RegionPolicy.PREFER)
    shares = _shares(decide(snapshot, request, NOW, 0.0))
    assert shares["eu-1"] == pytest.approx(0.3)
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_region_policy_needs_a_region() -> None:
    with pytest.raises(RequestError, match=r"region = '': expected the region that policy 'stay' is about"):
        RouteRequest(MODEL, region_policy=RegionPolicy.STAY)
    with pytest.raises(RequestError, match=r"budget_usd = -1"):
        RouteRequest(MODEL, budget_usd=-1)


def test_a_tenants_policy_excludes_providers_and_prices() -> None:
    cheap = endpoint("cheap", 2, input_usd_per_mtok=1.0, output_usd_per_mtok=2.0)
    dear = endpoint("dear", 0, input_usd_per_mtok=10.0, output_usd_per_mtok=30.0)
    snapshot = _snapshot(_facts("dear", endpoint=dear), _facts("foreign", 1), _facts("cheap", 2, endpoint=cheap))
    request = RouteRequest(
        MODEL,
        input_tokens=1000,
        max_output_tokens=500,
        budget_usd=0.002,
        allowed_providers=frozenset({"cheap", "dear"}),
    )
    decision = decide(snapshot, request, NOW, 0.0)
    assert _chosen(decision) == "cheap"
    assert _exclusions(decision) == {
        "dear": ("over_budget", "could cost 0.025000 USD, more than the budget of 0.002000 USD"),
        "foreign": ("provider_not_allowed", "provider 'foreign' is not among those allowed: cheap, dear"),
    }
    assert _chosen(decide(snapshot, replace(request, budget_usd=1.0), NOW, 0.0)) == "dear", "a plan is not mixed up"
    assert _chosen(decide(snapshot, replace(request, input_tokens=3000), NOW, 0.0)) == "", "nor one of another size"


@pytest.mark.parametrize("objective", Objective)
def test_f13_a_request_that_failed_twice_in_one_region_goes_elsewhere_next(objective: Objective) -> None:
    def of(name: str, order: int, region: str) -> Facts:
        return _facts(name, order, endpoint=endpoint(name, order, provider="borealis", region=region))

    snapshot = _snapshot(of("eu-1", 0, "eu"), of("eu-2", 1, "eu"), of("eu-3", 2, "eu"), of("us-1", 3, "us"))
    once = RouteRequest(MODEL, objective=objective, excluded=frozenset({"eu-1"}))
    assert _shares(decide(snapshot, once, NOW, 0.0))["eu-2"] > 0, "one failure says little, the order holds"
    twice = replace(once, excluded=frozenset({"eu-1", "eu-2"}))
    assert _shares(decide(snapshot, twice, NOW, 0.0)) == {"us-1": 1.0, "eu-3": 0.0}
    thrice = replace(once, excluded=frozenset({"eu-1", "eu-2", "us-1"}))
    assert _chosen(decide(snapshot, thrice, NOW, 0.0)) == "eu-3", "it is not forbidden, it is the last resort"


def test_c06_the_cheapest_within_the_latency_objective_serves() -> None:
    def priced(name: str, order: int, usd: float, latency_s: float | None) -> Facts:
        return _facts(name, order, endpoint=endpoint(name, order, input_usd_per_mtok=usd), latency_s=latency_s)

    snapshot = _snapshot(priced("slow", 0, 1.0, 2.0), priced("fair", 1, 2.0, 0.4), priced("new", 2, 3.0, None))
    request = RouteRequest(MODEL, objective=Objective.CHEAPEST)
    assert _chosen(decide(snapshot, request, NOW, 0.0)) == "slow"
    within = decide(snapshot, replace(request, slo_s=0.5), NOW, 0.0)
    assert [c.candidate.facts.endpoint.id for c in within.considered] == ["fair", "new", "slow"]
    assert _chosen(decide(snapshot, replace(request, slo_s=0.1, excluded=frozenset({"new"})), NOW, 0.0)) == "slow"
    assert _chosen(decide(snapshot, replace(request, objective=Objective.ORDERED, slo_s=0.1), NOW, 0.0)) == "slow"
    with pytest.raises(RequestError, match="slo_s = 0"):
        RouteRequest(MODEL, slo_s=0)
