"""One tenant's account: what it may ask for, and what it has asked for.

A request takes everything it may need before it is sent (`admit`), all or nothing, and gives back what it did not use
when that is known (`settle`). So a burst cannot slip through between the asking and the counting.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from types import MappingProxyType

from service.tenancy.buckets import TokenBucket
from service.tenancy.budgets import Budget, Period

_NEWEST_WEIGHT = 0.05
_NOTHING: Mapping[Period, float] = MappingProxyType({})


class Limit(StrEnum):
    """What a tenant may run out of."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may ask for; None for no limit."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    max_concurrent: int | None = None
    usd_per_day: float | None = None
    usd_per_month: float | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request may need: its tokens as estimated, output included, and the most it may cost."""

    tokens: int
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which limit a request exceeds. `retry_after_s` is None where waiting does not help."""

    limit: Limit
    message: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Standing:
    """How much is left of one limit, and in how long it will be whole again."""

    limit: Limit
    most: int
    left: int
    reset_s: float


class Account:
    """What one tenant has used. Times are seconds since the epoch on a clock that never goes back.

    `spent_usd` of day and month is what the ledger knows from before.
    """

    __slots__ = ("_budgets", "_limits", "_requests", "_tokens", "in_flight", "usual_output_tokens")

    def __init__(self, limits: Limits, now: float, spent_usd: Mapping[Period, float] = _NOTHING) -> None:
        self._limits = limits
        self._requests = TokenBucket(limits.requests_per_min, now) if limits.requests_per_min is not None else None
        self._tokens = TokenBucket(limits.tokens_per_min, now) if limits.tokens_per_min is not None else None
        self._budgets = [
            Budget(most_usd, period, now, spent_usd.get(period, 0.0))
            for most_usd, period in ((limits.usd_per_day, Period.DAY), (limits.usd_per_month, Period.MONTH))
            if most_usd is not None
        ]
        self.in_flight = 0
        self.usual_output_tokens = 0.0

    def admit(self, demand: Demand, now: float) -> Refusal | None:
        """Take what the request may need, or say why it may not be; then nothing is taken."""
        refusal = self._refusal(demand, now)
        if refusal is not None:
            return refusal
        self.in_flight += 1
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(demand.tokens, now)
        for budget in self._budgets:
            budget.hold(demand.cost_usd)
        return None

    def settle(self, demand: Demand, used_tokens: int, now: float) -> None:
        """The request has ended: put back what it took and did not use, or take what it used beyond. What it cost is
        for `spend`.
        """
        self.in_flight -= 1
        if self._tokens is not None:
            self._tokens.take(used_tokens - demand.tokens, now)
        for budget in self._budgets:
            budget.release(demand.cost_usd)

    def spend(self, cost_usd: float, now: float) -> None:
        """Something was paid for, whether or not its caller still waits."""
        for budget in self._budgets:
            budget.spend(cost_usd, now)

    def answered(self, output_tokens: int) -> None:
        """An answer had so many tokens: what to reserve for requests that set no limit of their own."""
        self.usual_output_tokens += _NEWEST_WEIGHT * (output_tokens - self.usual_output_tokens)

    def standings(self, now: float) -> list[Standing]:
        """Return how the limits per minute stand."""
        return [
            Standing(limit, int(bucket.capacity), max(0, int(bucket.level(now))), bucket.wait_s(bucket.capacity, now))
            for limit, bucket in ((Limit.REQUESTS, self._requests), (Limit.TOKENS, self._tokens))
            if bucket is not None
        ]

    def _refusal(self, demand: Demand, now: float) -> Refusal | None:
        most = self._limits.max_concurrent
        if most is not None and self.in_flight >= most:
            return Refusal(Limit.CONCURRENCY, f"{self.in_flight} requests are under way, of at most {most}", 1.0)
        for limit, bucket, amount in (
            (Limit.REQUESTS, self._requests, 1),
            (Limit.TOKENS, self._tokens, demand.tokens),
        ):
            wait_s = bucket.wait_s(amount, now) if bucket is not None else 0.0
            if bucket is not None and wait_s:
                return Refusal(limit, _over(limit, bucket, amount, now), None if wait_s == inf else wait_s)
        for budget in self._budgets:
            if not budget.affords(demand.cost_usd, now):
                wait_s = budget.renews_at(now) - now
                message = (
                    f"the budget of {budget.limit_usd:g} USD per {budget.period.value} has {budget.spent_usd:.6f} USD "
                    f"spent, and the request may cost {demand.cost_usd:.6f} USD; it renews in {wait_s:.0f} s"
                )
                return Refusal(Limit.BUDGET, message, wait_s)
        return None


def _over(limit: Limit, bucket: TokenBucket, amount: int, now: float) -> str:
    left = max(0, int(bucket.level(now)))
    if amount > bucket.capacity:
        return f"the request may need {amount} tokens, more than the {bucket.capacity} per minute"
    return f"{left} {limit.value} are left of {bucket.capacity} per minute, and the request may need {amount}"
