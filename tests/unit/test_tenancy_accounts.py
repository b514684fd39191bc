"""A tenant's account on a virtual clock: what it may take, gets back, owes, and spends (issue 5, item 6)."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tenancy.accounts import Account, Demand, Limit, Limits
from service.tenancy.buckets import TokenBucket
from service.tenancy.budgets import Budget, Period, begin_of, end_of

NOW = datetime(2026, 12, 31, 23, 59, 50, tzinfo=UTC).timestamp()


def test_requests_per_minute_come_back_one_by_one() -> None:
    account = Account(Limits(requests_per_min=3), NOW)
    for _ in range(3):
        assert account.admit(Demand(0), NOW) is None
    refusal = account.admit(Demand(0), NOW)
    assert refusal is not None
    assert refusal.limit is Limit.REQUESTS
    assert refusal.retry_after_s == pytest.approx(20)
    assert account.admit(Demand(0), NOW + 19.9) is not None
    assert account.admit(Demand(0), NOW + 20.1) is None


def test_tokens_are_reserved_and_what_was_not_used_comes_back() -> None:
    account = Account(Limits(tokens_per_min=1000), NOW)
    demand = Demand(800)
    assert account.admit(demand, NOW) is None
    refusal = account.admit(demand, NOW)
    assert refusal is not None
    assert refusal.limit is Limit.TOKENS
    assert refusal.retry_after_s == pytest.approx(600 / (1000 / 60))
    account.settle(demand, 100, NOW)
    assert account.admit(demand, NOW) is None, "700 of 800 came back"


def test_who_uses_more_than_was_reserved_owes_it() -> None:
    account = Account(Limits(tokens_per_min=600), NOW)
    assert account.admit(Demand(100), NOW) is None
    account.settle(Demand(100), 1200, NOW)
    (standing,) = account.standings(NOW)
    assert standing.left == 0
    assert standing.reset_s == pytest.approx(120)
    assert account.admit(Demand(1), NOW + 59) is not None
    assert account.admit(Demand(1), NOW + 61) is None


def test_a_request_that_never_fits_is_told_so_without_a_time_to_wait() -> None:
    refusal = Account(Limits(tokens_per_min=100), NOW).admit(Demand(101), NOW)
    assert refusal is not None
    assert refusal.retry_after_s is None
    assert "more than the 100 per minute" in refusal.message


def test_a_refused_request_takes_nothing_of_any_limit() -> None:
    account = Account(Limits(requests_per_min=10, tokens_per_min=100, usd_per_day=1.0), NOW)
    before = account.standings(NOW)
    assert account.admit(Demand(50, cost_usd=2.0), NOW) is not None
    assert account.admit(Demand(101), NOW) is not None
    assert account.standings(NOW) == before
    assert account.in_flight == 0


def test_concurrency_is_given_back_when_requests_end() -> None:
    account = Account(Limits(max_concurrent=1), NOW)
    assert account.admit(Demand(0), NOW) is None
    refusal = account.admit(Demand(0), NOW)
    assert refusal is not None
    assert refusal.limit is Limit.CONCURRENCY
    account.settle(Demand(0), 0, NOW)
    assert account.admit(Demand(0), NOW) is None


def test_a_budget_holds_what_requests_may_cost_and_renews_at_midnight() -> None:
    account = Account(Limits(usd_per_day=1.0), NOW)
    demand = Demand(0, cost_usd=0.6)
    assert account.admit(demand, NOW) is None
    refusal = account.admit(demand, NOW)
    assert refusal is not None
    assert refusal.limit is Limit.BUDGET
    assert refusal.retry_after_s == pytest.approx(10)
    account.spend(0.4, NOW)
    account.settle(demand, 0, NOW)
    assert account.admit(demand, NOW) is None, "0.4 spent and 0.6 held are just the budget"
    assert account.admit(Demand(0), NOW) is not None, "nothing is left, not even for what costs nothing"
    account.spend(0.6, NOW + 11)
    account.settle(demand, 0, NOW + 11)
    assert account.admit(Demand(0, cost_usd=0.4), NOW + 11) is None, "what ends today counts today"
    assert account.admit(Demand(0, cost_usd=0.1), NOW + 11) is not None


def test_what_the_ledger_knows_counts_after_a_restart() -> None:
    account = Account(Limits(usd_per_month=5.0), NOW, {Period.MONTH: 5.0})
    assert account.admit(Demand(0), NOW) is not None
    assert account.admit(Demand(0), NOW + 10) is None, "it is January"


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [
        ((2026, 2, 28, 12), (2026, 3, 1), (2026, 3, 1)),
        ((2028, 2, 28, 12), (2028, 2, 29), (2028, 3, 1)),
        ((2026, 12, 31, 23), (2027, 1, 1), (2027, 1, 1)),
        ((2026, 1, 31, 0), (2026, 2, 1), (2026, 2, 1)),
    ],
)
def test_periods_end_with_the_calendar(
    now: tuple[int, int, int, int], day: tuple[int, int, int], month: tuple[int, int, int]
) -> None:
    at = datetime(*now, tzinfo=UTC).timestamp()
    assert end_of(Period.DAY, at) == datetime(*day, tzinfo=UTC).timestamp()
    assert end_of(Period.MONTH, at) == datetime(*month, tzinfo=UTC).timestamp()
    assert begin_of(Period.MONTH, at) <= begin_of(Period.DAY, at) <= at


def test_a_budget_counts_by_when_requests_end() -> None:
    budget = Budget(1.0, Period.DAY, NOW)
    budget.hold(0.5)
    budget.spend(0.5, NOW)
    budget.release(0.5)
    assert budget.spent_usd == 0.5
    assert budget.renews_at(NOW) == NOW + 10
    assert budget.affords(1.0, NOW + 10)
    assert budget.renews_at(NOW + 10) == NOW + 10 + 86400


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 400), st.floats(0, 2)), max_size=60),
)
def test_whatever_is_asked_the_tokens_let_in_keep_to_the_rate(asked: list[tuple[float, int, float]]) -> None:
    """In any span, what was let in is at most a full bucket and what flowed in since, refunds counted as not taken."""
    bucket, now, taken = TokenBucket(600, 0.0), 0.0, 0.0
    for pause_s, amount, used_share in asked:
        now += pause_s
        if bucket.wait_s(amount, now) == 0:
            bucket.take(amount, now)
            bucket.take(min(amount, amount * used_share) - amount, now)
            taken += min(amount, amount * used_share)
        assert taken <= 600 + now * 10 + 1e-6
        assert bucket.level(now) <= 600


def test_a_clock_that_stands_still_or_steps_back_gives_nothing() -> None:
    bucket = TokenBucket(60, 100.0)
    bucket.take(60, 100.0)
    assert bucket.level(90.0) == 0
    bucket.take(-10, 90.0)
    assert bucket.level(100.0) == 10
