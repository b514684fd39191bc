"""The shell around the tenants' accounts: a request takes what it may need before anything else happens, and gives back
what it did not use when that is known.

Money is spent where the ledger's entry is made, not where the answer goes out: an execution under an idempotency key
goes on when its caller has left, and its answer is then there for nothing; and what was used until its caller left, or
until it broke, is in the ledger too.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing

from msgspec.structs import replace

from routing.model import Catalogue
from service.clock import Clock
from service.completion import Begun, Completion, Report, Served
from service.errors import BudgetExhaustedError, ServiceError, TenantLimitError
from service.history import AttemptSink
from service.providers.base import Chunk, Operation
from service.serving import Event, Serving
from service.tenancy.accounts import Account, Demand, Limit, Refusal, Standing
from service.unserved import unserved_record
from service.wire import estimated_tokens

_PREFIX = "x-ratelimit-"


class LimitedServing:
    """Stands before `inner`; outermost, for a replay of a kept answer is a request too. `record` hears of refusals.

    Args:
        accounts: of every tenant, by name.
        catalogue: knows prices.
    """

    def __init__(
        self,
        inner: Serving,
        accounts: Mapping[str, Account],
        catalogue: Catalogue,
        clock: Clock,
        record: AttemptSink,
        replica: str,
    ) -> None:
        self._inner = inner
        self._accounts = accounts
        self._catalogue = catalogue
        self._clock = clock
        self._record = record
        self._replica = replica

    async def complete(self, completion: Completion) -> Served:
        """See `Serving.complete`."""
        stay = self._admit(completion)
        try:
            served = await self._inner.complete(completion)
            stay.served(served.report)
        except asyncio.CancelledError:
            stay.left()
            raise
        finally:
            stay.settle(self._clock.now())
        reply = replace(served.reply, headers=self._stamped(stay, served.reply.headers))
        return replace(served, reply=reply)

    async def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        """See `Serving.stream`."""
        stay = self._admit(completion)
        try:
            async with aclosing(self._inner.stream(completion)) as items:
                async for item in items:
                    match item:
                        case Begun():
                            stay.begun(item)
                            yield replace(item, headers=self._stamped(stay, item.headers))
                            continue
                        case Chunk():
                            stay.chunks += item.has_content
                        case Report():
                            stay.served(item)
                        case _:
                            pass
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            stay.left()
            raise
        finally:
            stay.settle(self._clock.now())

    def _admit(self, completion: Completion) -> "_Stay":
        account, now = self._accounts[completion.route.tenant], self._clock.now()
        stay = _Stay(account, completion, self._prices(completion))
        refusal = account.admit(stay.demand, now)
        if refusal is None:
            return stay
        error = _error(completion.route.tenant, refusal, account.standings(now))
        self._record(unserved_record(completion, self._replica, error.reason, now, now))
        raise error

    def _prices(self, completion: Completion) -> tuple[float, float]:
        """Return the most that a million tokens may cost, input and output: at whichever endpoint it may come to."""
        allowed = completion.route.allowed_providers
        endpoints = [
            endpoint
            for endpoint in self._catalogue.by_model.get(completion.route.model, ())
            if not allowed or endpoint.provider in allowed
        ]
        return (
            max([endpoint.input_usd_per_mtok for endpoint in endpoints], default=0.0),
            max([endpoint.output_usd_per_mtok for endpoint in endpoints], default=0.0),
        )

    def _stamped(self, stay: "_Stay", headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return headers that tell how the tenant's limits stand, instead of our provider's."""
        standings = stay.account.standings(self._clock.now())
        if not standings:
            return headers
        return {k: v for k, v in headers.items() if not k.startswith(_PREFIX)} | limit_headers(standings)


def spending(accounts: Mapping[str, Account], clock: Clock) -> Callable[[Completion, Report], None]:
    """Return what is to hear of every entry of the ledger: it charges the tenant."""

    def entered(completion: Completion, report: Report) -> None:
        if report.cost_usd:
            accounts[completion.route.tenant].spend(report.cost_usd, clock.now())

    return entered


class _Stay:
    """One request between its admission and its end: what it took, and what it turns out to have used.

    Nobody counts the tokens of a stream whose caller leaves in the middle: the events until then do. One with an
    idempotency key goes on, and keeps what it took.
    """

    __slots__ = (
        "_cost_usd", "_estimate", "_goes_on", "_has_begun", "_prices", "_tokens", "account", "chunks", "demand",
    )  # fmt: skip

    def __init__(self, account: Account, completion: Completion, prices: tuple[float, float]) -> None:
        input_tokens = _input_tokens(completion)
        output_tokens = 0
        if completion.operation is not Operation.EMBEDDINGS:
            output_tokens = completion.route.max_output_tokens or round(account.usual_output_tokens)
        self.account = account
        self._estimate = input_tokens
        self._prices = prices
        cost_usd = min(self._cost(input_tokens, output_tokens), completion.route.budget_usd)
        self.demand = Demand(input_tokens + output_tokens, cost_usd)
        self.chunks = 0
        self._goes_on = bool(completion.idempotency_key)
        self._has_begun = False
        self._tokens, self._cost_usd = 0, 0.0

    def begun(self, begun: Begun) -> None:
        """A stream begins."""
        self._has_begun = not begun.replayed

    def served(self, report: Report) -> None:
        """It was served. What its provider did not count has used what was reserved; a replay has used nothing."""
        self._has_begun = False
        if report.replayed:
            self._tokens = 0
        elif report.input_tokens is None:
            self._tokens, self._cost_usd = self.demand.tokens, self.demand.cost_usd
        else:
            self._tokens = report.input_tokens + (report.output_tokens or 0)
            self.account.answered(report.output_tokens or 0)

    def left(self) -> None:
        """Its caller left."""
        self._tokens = self.demand.tokens if self._goes_on else self._estimate

    def settle(self, now: float) -> None:
        """It has ended."""
        if self._has_begun and not self._goes_on:
            self._tokens = self._estimate + self.chunks
        self.account.settle(self.demand, self._tokens, now)
        if self._cost_usd:
            self.account.spend(self._cost_usd, now)

    def _cost(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self._prices[0] + output_tokens * self._prices[1]) / 1e6


def _input_tokens(completion: Completion) -> int:
    fields = completion.fields
    if completion.operation is Operation.CHAT:
        return completion.route.input_tokens
    return estimated_tokens([fields["input"]]) if "input" in fields else 0


def _error(tenant: str, refusal: Refusal, standings: list[Standing]) -> ServiceError:
    message = f"tenant {tenant!r}: {refusal.message}"
    if refusal.limit is Limit.BUDGET:
        return BudgetExhaustedError(message, retry_after_s=refusal.retry_after_s)
    reason = f"TENANT_{refusal.limit.name}_EXHAUSTED"
    return TenantLimitError(reason, message, retry_after_s=refusal.retry_after_s, headers=limit_headers(standings))


def limit_headers(standings: Iterable[Standing]) -> dict[str, str]:
    """Return how limits stand in the headers that OpenAI's clients know."""
    headers: dict[str, str] = {}
    for standing in standings:
        unit = standing.limit.value
        headers[f"{_PREFIX}limit-{unit}"] = str(standing.most)
        headers[f"{_PREFIX}remaining-{unit}"] = str(standing.left)
        headers[f"{_PREFIX}reset-{unit}"] = _span(standing.reset_s)
    return headers


def _span(seconds: float) -> str:
    """Return a duration as OpenAI writes it: 17ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(seconds * 1e3)}ms"
    minutes, rest_s = divmod(seconds, 60)
    return f"{int(minutes)}m{rest_s:.3g}s" if minutes else f"{rest_s:.3g}s"
