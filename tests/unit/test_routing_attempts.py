"""What one request may still do after an attempt, and how long the next one may take."""

from dataclasses import replace

import pytest

from routing.attempts import (
    Patience,
    RequestBudget,
    first_byte_timeout_s,
    is_reroute,
    limit_ends_in_s,
    overloaded,
    recovering,
    refusal_to_retry,
    spared_by_retries,
    wait_s,
)
from routing.health import State
from routing.outcomes import Outcome
from routing.pipeline import Decision
from routing.policy import AttemptPolicy, BudgetPolicy
from routing.snapshot import Facts
from tests.decisions import NOW, decision, facts, snapshot
from tests.routing_world import MODEL

POLICY = AttemptPolicy(max_attempts=3, deadline_s=100.0, ttft_timeout_s=20.0, reply_timeout_s=60.0, reserve_s=30.0)
IDEMPOTENT = RequestBudget(deadline=100.0, idempotent=True)
ONCE = RequestBudget(deadline=100.0, idempotent=False)


def _refusal(
    outcome: Outcome, budget: RequestBudget = IDEMPOTENT, made: int = 1, emitted: bool = False, now: float = 0.0
) -> str:
    return refusal_to_retry(outcome, made, emitted, budget, POLICY, now)


@pytest.mark.parametrize("outcome", [Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.RATE_LIMITED, Outcome.AUTH_ERROR])
def test_f02_a_provider_s_failure_may_be_tried_elsewhere(outcome: Outcome) -> None:
    assert _refusal(outcome) == ""


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_ERROR, Outcome.CANCELLED])
def test_the_caller_s_own_failure_would_fail_elsewhere_too(outcome: Outcome) -> None:
    assert _refusal(outcome) == f"{outcome.value} would fail elsewhere too"


@pytest.mark.parametrize(
    ("outcome", "refused"),
    [
        (Outcome.CONNECT_ERROR, False),
        (Outcome.RATE_LIMITED, False),
        (Outcome.SERVER_ERROR, True),
        (Outcome.TIMEOUT, True),
        (Outcome.STALLED, True),
    ],
)
def test_f04_what_must_not_run_twice_is_repeated_only_when_it_never_ran(outcome: Outcome, refused: bool) -> None:
    assert bool(_refusal(outcome, ONCE)) is refused


def test_nothing_follows_a_first_emitted_byte() -> None:
    for outcome in Outcome:
        assert _refusal(outcome, emitted=True) == "part of the answer has been sent"


@pytest.mark.parametrize(("made", "refusal"), [(2, ""), (3, "all 3 attempts are used")])
def test_attempts_are_capped(made: int, refusal: str) -> None:
    assert _refusal(Outcome.TIMEOUT, made=made) == refusal


@pytest.mark.parametrize(("now", "refusal"), [(99.9, ""), (100.0, "the deadline has passed")])
def test_no_attempt_after_the_deadline(now: float, refusal: str) -> None:
    assert _refusal(Outcome.TIMEOUT, now=now) == refusal


@pytest.mark.parametrize(
    ("now", "streamed", "others_left", "timeout_s"),
    [
        (0.0, True, True, 20.0),
        (0.0, False, True, 60.0),
        (20.0, False, True, 50.0),
        (20.0, False, False, 60.0),
        (60.0, False, True, 20.0),
        (60.0, False, False, 40.0),
        (90.0, True, True, 5.0),
        (90.0, True, False, 10.0),
        (130.0, True, True, 0.0),
    ],
)
def test_time_is_kept_for_the_fallback(now: float, streamed: bool, others_left: bool, timeout_s: float) -> None:
    found = first_byte_timeout_s(IDEMPOTENT, POLICY, now, streamed=streamed, others_left=others_left)
    assert found == pytest.approx(timeout_s)


def _limited(name: str, order: int, rest_s: float, share: float = 1.0) -> Facts:
    return facts(name, order, blocked_until=NOW + rest_s, quota_share=share)


def test_l13_a_retry_spares_overloaded_endpoints_once_they_are_the_most() -> None:
    few = snapshot(facts("a"), facts("b", 1, quota_share=0.1), facts("c", 2)).candidates(MODEL)
    assert recovering(few) == {"b"}
    assert not overloaded(few, BudgetPolicy(), NOW)
    assert spared_by_retries(few, BudgetPolicy(), NOW) == frozenset()

    most = snapshot(_limited("a", 0, 5.0), facts("b", 1, quota_share=0.1), facts("c", 2)).candidates(MODEL)
    assert overloaded(most, BudgetPolicy(), NOW)
    assert spared_by_retries(most, BudgetPolicy(), NOW) == {"b"}
    assert not overloaded(most, BudgetPolicy(overloaded_share=0.7), NOW)
    assert not overloaded(most, BudgetPolicy(), NOW + 5.0), "a pause that is over is none"


def test_l13_a_spared_endpoint_gets_no_retry_and_the_decision_says_why() -> None:
    known = (facts("a"), facts("b", 1, quota_share=0.1), facts("c", 2))
    found = decision(*known, tried=("a",), spared=("b",))
    assert found.chosen is not None
    assert found.chosen.facts.endpoint.id == "c"
    assert {c.candidate.facts.endpoint.id: c.excluded_by for c in found.considered} == {
        "c": "", "a": "already_tried", "b": "overloaded",
    }  # fmt: skip
    assert decision(*known, tried=("a", "c"), spared=("b",)).chosen is None


@pytest.mark.parametrize(
    ("left", "costs_nothing"),
    [
        (facts("a", state=State.EJECTED), True),
        (facts("a", state=State.PROBING), True),
        (facts("a", state=State.DRAINING), True),
        (facts("a", blocked_until=NOW + 1), True),
        (facts("a"), False),
        (facts("a", state=State.DEGRADED), False),
        (facts("a", state=State.CANARY), False),
    ],
)
def test_f02_leaving_an_endpoint_that_is_out_is_no_retry(left: Facts, costs_nothing: bool) -> None:
    assert is_reroute(decision(left, facts("b", 1), tried=("a",)), "a") is costs_nothing


def test_an_attempt_in_despair_is_a_retry() -> None:
    out = decision(facts("a", state=State.EJECTED), facts("b", 1, state=State.EJECTED), tried=("a",))
    assert out.panic
    assert not is_reroute(out, "a")


RATE_LIMITS = BudgetPolicy(max_wait_s=2.0)
PATIENT = RequestBudget(NOW + 60, idempotent=True)


def _refused(**retry_after_s: float | None) -> Patience:
    """A request that these endpoints refused just now."""
    patience = Patience()
    for name, asked_s in retry_after_s.items():
        patience.failed(name, Outcome.RATE_LIMITED, asked_s, NOW)
    return patience


def _wait_s(found: Decision, patience: Patience, draw: float = 0.0) -> float | None:
    return wait_s(found, patience, PATIENT, RATE_LIMITS, draw)


def test_a_request_waits_for_the_first_rate_limit_to_end_and_a_random_part_of_as_long_again() -> None:
    found = decision(_limited("a", 0, 0.8), _limited("b", 1, 1.5), facts("c", 2, state=State.DRAINING))
    assert found.chosen is None
    assert [_wait_s(found, Patience(), draw) for draw in (0.0, 0.5)] == pytest.approx([0.8, 1.2])
    late = RequestBudget(NOW + 1.0, idempotent=True)
    waits = [wait_s(found, Patience(), late, RATE_LIMITS, draw) for draw in (0.0, 0.5)]
    assert waits == pytest.approx([0.8, None])
    assert wait_s(found, Patience(), PATIENT, BudgetPolicy(max_wait_s=0.7), 0.0) is None
    assert wait_s(found, Patience(), PATIENT, BudgetPolicy(max_wait_s=1.0), 0.5) == pytest.approx(0.9), "part of 0.2"


def test_a_request_waits_only_where_a_rate_limit_is_all_that_is_in_the_way() -> None:
    out_too = decision(facts("a", state=State.DRAINING, blocked_until=NOW + 1))
    assert _wait_s(out_too, Patience()) is None
    tried = decision(_limited("a", 0, 1.0), tried=("a",))
    assert _wait_s(tried, Patience()) is None, "it failed there, for another reason"
    assert _wait_s(tried, _refused(a=0.0)) == pytest.approx(1.0), "it was only told to come later"
    assert _wait_s(decision(facts("a", state=State.EJECTED), tried=("a",)), _refused(a=1.0)) is None


def test_a_limit_that_is_over_at_once_still_spreads_those_who_wait() -> None:
    over = decision(_limited("a", 0, 0.0), tried=("a",))
    assert [_wait_s(over, _refused(a=0.0), draw) for draw in (0.0, 0.5)] == pytest.approx([0.0, 0.05])
    assert wait_s(over, _refused(a=0.0), PATIENT, BudgetPolicy(max_wait_s=0.0), 0.5) is None, "no wait at all"


@pytest.mark.parametrize(
    ("blocked_s", "told_s", "rest_s"), [(0.0, 1.5, 1.5), (1.9, 1.5, 1.9), (0.5, 1.5, 1.5), (0.0, 2.1, None)]
)
def test_l13_a_request_waits_for_what_it_was_told_whatever_others_may_do(
    blocked_s: float, told_s: float, rest_s: float | None
) -> None:
    """A lone 429 pauses nobody else, so the endpoint may be open for all while this request has to stay away."""
    found = decision(_limited("a", 0, blocked_s), tried=("a",))
    assert _wait_s(found, _refused(a=told_s)) == (None if rest_s is None else pytest.approx(rest_s))


def test_l13_the_earliest_of_those_that_refused_ends_the_wait_and_only_it_is_asked_again() -> None:
    tried, patience = ("a", "b", "c"), _refused(a=6.0, b=1.0)
    patience.failed("c", Outcome.SERVER_ERROR, 0.5, NOW)
    found = decision(*(facts(name, order) for order, name in enumerate(tried)), tried=tried)
    assert patience.excluded(tried) == set(tried), "nobody is asked again without a wait"
    assert limit_ends_in_s(found, patience) == pytest.approx(1.0)
    patience.waited(1.5, NOW + 1.5)
    assert patience.excluded(tried) == {"a", "c"}
    patience.failed("b", Outcome.TIMEOUT, None, NOW + 2.0)
    assert patience.excluded(tried) == set(tried), "what was a rate limit is one no more"


def test_a_refusal_without_a_time_is_left_in_peace_for_a_second() -> None:
    assert limit_ends_in_s(decision(facts("a"), tried=("a",)), _refused(a=None)) == pytest.approx(1.0)


def test_l13_all_waits_of_a_request_together_are_bounded() -> None:
    """A limit that always ends soon, and is never over: the waits add up to `max_wait_s` at most."""
    patience = _refused(a=0.7)
    waits, now = [], NOW
    while (pause_s := _wait_s(replace(decision(facts("a"), tried=("a",)), time=now), patience, 0.3)) is not None:
        waits.append(pause_s)
        now += pause_s
        patience.waited(pause_s, now)
        patience.failed("a", Outcome.RATE_LIMITED, 0.7, now)
    assert waits == pytest.approx([0.91, 0.7 + 0.3 * (2.0 - 0.91 - 0.7)])
