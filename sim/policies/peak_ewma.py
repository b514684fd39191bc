"""Peak-EWMA: Finagle's and Linkerd's power of two choices by latency, with a retry budget instead of a breaker.

Published defaults (Finagle 24, Linkerd 2, 2026): the cheaper of two random endpoints by Peak-EWMA × pending, decay
10 s, 30 ms assumed before the first answer (Linkerd); retries while a budget lasts that gets 20 % of requests and a
reserve of 10 a second, both over 10 s (Finagle's `RetryBudget`). Balanced: no endpoint is preferred.

Where the documentation is silent or says "off": Linkerd's breaker and Finagle's failure accrual are left out, because
the budget is what both share; retried are 5xx, refused connections and timeouts, at once, by a fresh choice that may
meet the same endpoint, up to Finagle's 25 per request; a failure's time counts as a latency; without a request timeout
in either, 600 s.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from sim.arena.policy import ArenaRequest, Attempted, Limits, RetryLimit
from sim.policies.base import SERVER_FAULTS, Baseline, Settings, may_retry
from sim.policies.load import PeakEwma


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakEwmaSettings(Settings):
    """See the module's docstring."""

    decay_s: float = 10.0
    default_latency_s: float = 0.03
    retry_share: float = 0.2
    retries_per_s: float = 10.0
    budget_s: float = 10.0
    retries: int = 25
    attempt_timeout_s: float = 600.0
    stall_timeout_s: float = 600.0


class RetryBudget:
    """A balance of retries over the last `span_s`: `share` of each attempt in, one out per retry, plus a reserve.

    Counted in ten slots, as Finagle's leaky token bucket does.
    """

    __slots__ = ("_balance", "_reserve", "_share", "_slot_s", "_slots")

    def __init__(self, share: float, per_s: float, span_s: float) -> None:
        self._share = share
        self._reserve = per_s * span_s
        self._slot_s = span_s / 10
        self._slots: deque[tuple[int, float]] = deque()
        self._balance = 0.0

    def deposit(self, now: float) -> None:
        """An attempt was sent."""
        self._book(self._share, now)

    def withdraw(self, now: float) -> bool:
        """Take one retry out if the balance allows it. Its own attempt deposits nothing, so that is taken back too."""
        self._book(0.0, now)
        if self._reserve + self._balance < 1.0:
            return False
        self._book(-1.0 - self._share, now)
        return True

    def _book(self, amount: float, now: float) -> None:
        slots, slot = self._slots, int(now / self._slot_s)
        while slots and slots[0][0] <= slot - 10:
            self._balance -= slots.popleft()[1]
        if slots and slots[-1][0] == slot:
            slots[-1] = (slot, slots[-1][1] + amount)
        else:
            slots.append((slot, amount))
        self._balance += amount


class PeakEwmaBalancer(Baseline):
    """See the module's docstring."""

    name = "peak-ewma"

    def __init__(self, endpoints: int, settings: PeakEwmaSettings) -> None:
        super().__init__(endpoints, settings)
        reserve = settings.retries_per_s * settings.budget_s
        self.limits = Limits(1 + settings.retries, retries=RetryLimit(settings.retry_share, reserve, settings.budget_s))
        self._retries = settings.retries
        self._load = PeakEwma(endpoints, settings.decay_s, settings.default_latency_s)
        self._budget = RetryBudget(settings.retry_share, settings.retries_per_s, settings.budget_s)

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the cheaper of two endpoints."""
        return self._load.choose(self._order, now, draw)

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Retry at once if the budget has one left."""
        if may_retry(made, self._retries) and made[-1].outcome in SERVER_FAULTS and self._budget.withdraw(now):
            return 0.0
        return None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Count it as pending, and towards the budget."""
        self._load.sent(endpoint, attempt_id, now)
        self._budget.deposit(now)

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Measure the time to answer."""
        self._load.answered(endpoint, attempt_id, now)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Measure a failure's time too."""
        self._load.ended(attempted.endpoint, attempted.attempt_id, now)
