"""What the requests of a model may spend together: retries as in Finagle, hedges under a cap, places to wait."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.budget import Budgets, LeakyTokens, ModelBudget
from routing.errors import UnknownModelError
from routing.policy import BudgetPolicy, HedgePolicy, Policy

RETRYING = BudgetPolicy(retry_share=0.2, retry_floor_per_s=1.0, window_s=10.0, max_waiting=2)
HEDGING = HedgePolicy(max_share=0.1, max_spend_share=0.1, window_s=100.0)


def _budget(retrying: BudgetPolicy = RETRYING, hedging: HedgePolicy = HEDGING) -> ModelBudget:
    return ModelBudget(retrying, hedging)


def test_tokens_leak_with_the_window_and_reading_changes_nothing() -> None:
    tokens = LeakyTokens(10.0)
    tokens.add(3.0, 100.0)
    tokens.add(2.0, 105.0)
    assert [tokens.balance(now) for now in (105.0, 109.9, 110.0, 114.9, 115.0, 1e9)] == [5.0, 5.0, 2.0, 2.0, 0.0, 0.0]
    assert tokens.balance(105.0) == 5.0
    tokens.add(1.0, 1e6)
    assert tokens.balance(1e6) == 1.0


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(-3, 3)), max_size=60), st.floats(1, 100))
def test_the_balance_is_what_was_put_in_during_the_last_ten_slots(
    steps: list[tuple[float, float]], span: float
) -> None:
    """Against the plain definition: a list of everything that was ever put in."""
    tokens, now, put = LeakyTokens(span), 0.0, []
    for wait_s, amount in steps:
        now += wait_s
        tokens.add(amount, now)
        put.append((int(now * 10 / span), amount))
        newest = put[-1][0]
        assert tokens.balance(now) == pytest.approx(sum(a for slot, a in put if slot > newest - 10), abs=1e-9)


def test_f02_the_retries_of_a_window_are_a_share_of_its_requests_and_a_floor() -> None:
    budget = _budget()
    for i in range(100):
        budget.requested(50.0 + i / 20)
    taken = 0
    while budget.take_retry(55.0):
        taken += 1
    assert taken == 10 + 20
    assert not budget.take_retry(59.9)


def test_the_floor_alone_lets_a_quiet_model_fail_over() -> None:
    budget = _budget(replace(RETRYING, retry_share=0.0))
    assert sum(budget.take_retry(1000.0) for _ in range(20)) == 10
    assert budget.take_retry(1010.0), "what was taken leaks away as what was put in does"
    assert not any(_budget(replace(RETRYING, retry_share=0.0, retry_floor_per_s=0.0)).take_retry(t) for t in (0.0, 5.0))


@given(
    st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=300),
    st.floats(0, 1),
    st.floats(0, 3),
)
def test_no_sequence_of_requests_and_retries_overdraws(
    steps: list[tuple[float, bool]], share: float, floor: float
) -> None:
    """L-13: whatever happens, the retries of any window stay within the share of its requests and the floor."""
    budget = _budget(replace(RETRYING, retry_share=share, retry_floor_per_s=floor))
    now, requests, retries = 0.0, [], []
    for wait_s, is_retry in steps:
        now += wait_s
        slot = int(now)
        if not is_retry:
            budget.requested(now)
            requests.append(slot)
        elif budget.take_retry(now):
            retries.append(slot)
            # Requests that leak away take nothing back of what they had paid for, so the moment of a retry counts.
            sent, spent = (sum(s > slot - 10 for s in slots) for slots in (requests, retries))
            assert spent <= share * sent + floor * 10 + 1e-9


def test_places_to_wait_are_bounded_and_come_back_by_themselves() -> None:
    budget = _budget()
    assert [budget.take_place(until, 0.0) for until in (2.0, 1.0, 1.5)] == [True, True, False]
    assert budget.waiting(0.5) == 2
    assert budget.take_place(3.0, 1.0)
    assert not budget.take_place(3.0, 1.9)
    assert budget.waiting(2.0) == 1
    assert not _budget(replace(RETRYING, max_waiting=0)).take_place(1.0, 0.0)


def test_hedges_stay_within_their_share_of_requests_give_or_take_one() -> None:
    budget = _budget()
    for _ in range(100):
        budget.requested(0.0)
    taken = 0
    while not budget.take_hedge(0.0, 1.0):
        taken += 1
    assert 10 <= taken <= 11
    assert budget.take_hedge(0.0, 1.0) == "hedges have used up their share of requests (0.1)"
    assert budget.refusal_to_hedge(100.0) == ""


def test_hedges_stay_within_their_share_of_spending() -> None:
    budget = _budget()
    for _ in range(1000):
        budget.requested(0.0)
    budget.served(10.0, 50, 0.0)
    assert budget.take_hedge(0.8, 0.0) == ""
    assert budget.take_hedge(0.8, 0.0) == "", "overdrawn by one at most"
    assert budget.take_hedge(0.8, 0.0) == "hedges have used up their share of spending (0.1)"
    budget.served(10.0, 50, 0.0)
    assert budget.take_hedge(0.8, 0.0) == ""


def test_the_usual_output_follows_what_is_served() -> None:
    budget = _budget()
    for _ in range(200):
        budget.served(0.0, 400, 0.0)
    assert budget.usual_output_tokens == pytest.approx(400, rel=0.01)


def test_another_policy_keeps_the_accounts_unless_their_window_changes() -> None:
    budgets = Budgets(["m"], Policy(budget=RETRYING, hedge=HEDGING))
    budget = budgets["m"]
    while budget.take_retry(5.0):
        pass
    budgets.adopt(Policy(budget=replace(RETRYING, retry_floor_per_s=1.1), hedge=HEDGING))
    assert [budget.take_retry(5.0) for _ in range(2)] == [True, False]
    budgets.adopt(Policy(budget=replace(RETRYING, window_s=20.0), hedge=HEDGING))
    assert budget.retries_left(5.0) == 20.0


def test_each_model_has_accounts_of_its_own() -> None:
    budgets = Budgets(["m", "n"], Policy(budget=RETRYING))
    while budgets["m"].take_retry(0.0):
        pass
    assert budgets["n"].take_retry(0.0)
    assert budgets["n"].take_place(5.0, 0.0)
    assert budgets.standing(0.0) == [("m", 0.0, 0), ("n", 9.0, 1)]
    with pytest.raises(UnknownModelError, match="known models: m, n"):
        budgets["o"]
