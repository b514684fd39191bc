"""What the requests of a model may spend beyond their first attempts: retries, hedges, and places to wait.

Retries follow Finagle's `RetryBudget`: a leaky token bucket that each request feeds with a share of a retry, on top of
a floor per second (https://twitter.github.io/finagle/guide/Clients.html#retries). A share of all requests holds where
a count per request does not: when everything fails, `n` retries each multiply the load by `n` + 1, a budget of 20 %
by 1.2.

A failover is no retry in this sense. Once the endpoint that failed is out, sending its requests to one that is well
only undoes a route that is no longer taken, and adds no load to anybody in trouble; so it costs nothing (see
`attempts.is_reroute`). The budget is for attempts among endpoints that still serve, and for those made in despair.
"""

from collections.abc import Iterable
from heapq import heappop, heappush

from routing.errors import UnknownModelError
from routing.policy import BudgetPolicy, HedgePolicy, Policy

_SLOTS = 10
_NEWEST_WEIGHT = 0.05


class LeakyTokens:
    """Tokens put in during the last `window_s` seconds, less those taken in that time.

    Bounded: ten sums, each over a tenth of the window, so a token leaks after nine to ten tenths of it. `balance`
    changes nothing.
    """

    __slots__ = ("_newest", "_slots", "window_s")

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._slots = [0.0] * _SLOTS
        self._newest = 0

    def _slot(self, now: float) -> int:
        return int(now * _SLOTS / self.window_s)

    def add(self, tokens: float, now: float) -> None:
        """Put tokens in, or take them out when negative."""
        slot = self._slot(now)
        if slot > self._newest:
            for passed in range(self._newest + 1, min(slot, self._newest + _SLOTS) + 1):
                self._slots[passed % _SLOTS] = 0.0
            self._newest = slot
        self._slots[self._newest % _SLOTS] += tokens

    def balance(self, now: float) -> float:
        """Return what is left; negative when more was taken than put in."""
        passed = self._slot(now) - self._newest
        if passed >= _SLOTS:
            return 0.0
        if passed <= 0:
            return sum(self._slots)
        return sum(self._slots[(self._newest - age) % _SLOTS] for age in range(_SLOTS - passed))


class ModelBudget:
    """The accounts of one model."""

    __slots__ = ("_hedges", "_hedging", "_retries", "_retrying", "_spend", "_waiting", "usual_output_tokens")

    def __init__(self, retrying: BudgetPolicy, hedging: HedgePolicy) -> None:
        self._retrying, self._hedging = retrying, hedging
        self._retries = LeakyTokens(retrying.window_s)
        self._hedges = LeakyTokens(hedging.window_s)
        self._spend = LeakyTokens(hedging.window_s)
        self._waiting: list[float] = []
        self.usual_output_tokens = 0.0

    def adopt(self, retrying: BudgetPolicy, hedging: HedgePolicy) -> None:
        """Go by other limits from now on. An account whose window changes starts empty."""
        self._retrying, self._hedging = retrying, hedging
        if self._retries.window_s != retrying.window_s:
            self._retries = LeakyTokens(retrying.window_s)
        if self._hedges.window_s != hedging.window_s:
            self._hedges, self._spend = LeakyTokens(hedging.window_s), LeakyTokens(hedging.window_s)

    def requested(self, now: float) -> None:
        """A caller sent a request: once for all its attempts."""
        self._retries.add(self._retrying.retry_share, now)
        self._hedges.add(self._hedging.max_share, now)

    def served(self, cost_usd: float, output_tokens: int, now: float) -> None:
        """A request was answered at that price."""
        self._spend.add(cost_usd * self._hedging.max_spend_share, now)
        self.usual_output_tokens += _NEWEST_WEIGHT * (output_tokens - self.usual_output_tokens)

    def retries_left(self, now: float) -> float:
        """Return how many retries the budget would pay for now."""
        return self._retries.balance(now) + self._retrying.retry_floor_per_s * self._retrying.window_s

    def take_retry(self, now: float) -> bool:
        """Take one retry out of the budget, if there is one."""
        if self.retries_left(now) < 1.0:
            return False
        self._retries.add(-1.0, now)
        return True

    def waiting(self, now: float) -> int:
        """Return how many requests hold a place to wait."""
        return sum(until > now for until in self._waiting)

    def take_place(self, until: float, now: float) -> bool:
        """Take a place to wait until then, if one is free. A caller who leaves earlier keeps it: places are cheap, and
        nobody has to give one back.
        """
        while self._waiting and self._waiting[0] <= now:
            heappop(self._waiting)
        if len(self._waiting) >= self._retrying.max_waiting:
            return False
        heappush(self._waiting, until)
        return True

    def refusal_to_hedge(self, now: float) -> str:
        """Return which account is overdrawn, or "". Either may be overdrawn by one hedge, so that a model with little
        traffic is not left without any.
        """
        if self._hedges.balance(now) < 0:
            return f"hedges have used up their share of requests ({self._hedging.max_share:g})"
        if self._spend.balance(now) < 0:
            return f"hedges have used up their share of spending ({self._hedging.max_spend_share:g})"
        return ""

    def take_hedge(self, cost_usd: float, now: float) -> str:
        """Pay for a hedge that costs about so much; return why it may not be, or ""."""
        refusal = self.refusal_to_hedge(now)
        if not refusal:
            self._hedges.add(-1.0, now)
            self._spend.add(-cost_usd, now)
        return refusal


class Budgets:
    """The accounts of every model. Asking for a model that the catalogue does not have raises UnknownModelError."""

    __slots__ = ("_of",)

    def __init__(self, models: Iterable[str], policy: Policy) -> None:
        self._of = {model: ModelBudget(policy.budget, policy.hedge) for model in models}

    def __getitem__(self, model: str) -> ModelBudget:
        try:
            return self._of[model]
        except KeyError:
            raise UnknownModelError(model, sorted(self._of)) from None

    def standing(self, now: float) -> list[tuple[str, float, int]]:
        """Return of each model how many retries are left, and how many requests wait."""
        return [(model, budget.retries_left(now), budget.waiting(now)) for model, budget in self._of.items()]

    def adopt(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        for budget in self._of.values():
            budget.adopt(policy.budget, policy.hedge)
