"""The shell around the gate: requests wait for their turn before the upstream, and are let in, or told why not.

It stands next to whoever executes, below replays and ledger: an answer that is given again takes no place, and an
execution that goes on without its caller keeps its own.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec.structs import replace

from routing.actions import DomainChanged, Finished, Transitioned
from routing.model import Endpoint
from routing.outcomes import Outcome
from service.clock import Clock
from service.completion import Completion, Served
from service.errors import OverloadedError, RequestTimeoutError, ServiceError, TenantLimitError
from service.history import AttemptSink
from service.router import Decided
from service.serving import Event, Serving
from service.tenancy.fair_queue import Ticket
from service.tenancy.gate import Gate, Shed, Why
from service.unserved import unserved_record
from service.wire import CHARACTERS_PER_TOKEN

_TOLD = {
    Why.FULL: "as many requests wait as may",
    Why.TOO_LATE: "it would wait longer than it may",
    Why.OUTRANKED: "a request of a higher criticality took its place in the queue",
    Why.CLOSING: "the service is stopping",
}


class FairServing:
    """Stands before `inner`. A `Listener` of the router too: how fast endpoints answer moves the gate's limit.

    `max_wait_s` is the longest that a request waits, its own deadline aside; `record` hears of those turned away.
    """

    def __init__(
        self, inner: Serving, gate: Gate, clock: Clock, record: AttemptSink, replica: str, *, max_wait_s: float
    ) -> None:
        self._inner = inner
        self._gate = gate
        self._clock = clock
        self._record = record
        self._replica = replica
        self._max_wait_s = max_wait_s
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}

    # Serving.

    async def complete(self, completion: Completion) -> Served:
        """See `Serving.complete`."""
        entered = self._clock.now()
        cost = _cost(completion)
        if not self._gate.enter(completion.route.tenant, cost):
            completion = await self._queued(completion, cost, entered)
            entered = self._clock.now()
        try:
            return await self._inner.complete(completion)
        finally:
            self._admit(self._gate.leave(self._clock.now() - entered))

    async def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        """See `Serving.stream`."""
        entered = self._clock.now()
        cost = _cost(completion)
        if not self._gate.enter(completion.route.tenant, cost):
            completion = await self._queued(completion, cost, entered)
            entered = self._clock.now()
        try:
            async with aclosing(self._inner.stream(completion)) as items:
                async for item in items:
                    yield item
        finally:
            self._admit(self._gate.leave(self._clock.now() - entered))

    def close(self) -> None:
        """The service stops: whoever still waits is told so at once, to ask another replica."""
        for ticket in self._gate.close():
            self._turn_away(ticket, Why.CLOSING)

    async def _queued(self, completion: Completion, cost: float, now: float) -> Completion:
        """Wait for a turn; return the request with what is left of its time. Raises ServiceError."""
        given_s = completion.timeout_s
        patience_s = self._max_wait_s if given_s is None else min(self._max_wait_s, given_s)
        try:
            await self._turn(completion.route.tenant, cost, patience_s)
            waited_s = self._clock.now() - now
            left_s = None if given_s is None else given_s - waited_s
            if left_s is not None and left_s <= 0:
                self._admit(self._gate.leave(None))
                raise RequestTimeoutError(f"the deadline has passed after {waited_s:.3g} s in the queue")
        except ServiceError as error:
            self._note(completion, error.reason, now)
            raise
        except asyncio.CancelledError:
            self._note(completion, "CANCELLED", now)
            raise
        return replace(completion, timeout_s=left_s)

    async def _turn(self, flow: str, cost: float, patience_s: float) -> None:
        entry = self._gate.queue(flow, cost, patience_s)
        if isinstance(entry, Shed):
            raise _refusal(entry.why, entry.retry_after_s)
        if entry.turned_away is not None:
            self._turn_away(entry.turned_away, Why.OUTRANKED)
        turn = self._waiting[entry.ticket] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except TimeoutError:
            raise _refusal(Why.TOO_LATE, self._withdraw(entry.ticket)) from None
        except asyncio.CancelledError:
            self._withdraw(entry.ticket)
            raise

    def _withdraw(self, ticket: Ticket) -> float:
        """Let somebody go who waited; return about when there should be room."""
        if ticket.admitted:
            # Its turn came in the same moment.
            self._admit(self._gate.leave(None))
            return 0.0
        if self._waiting.pop(ticket, None) is None:
            # It was turned away in the same moment.
            return self._max_wait_s
        return self._gate.give_up(ticket)

    def _turn_away(self, ticket: Ticket, why: Why) -> None:
        turn = self._waiting.pop(ticket)
        if not turn.done():
            turn.set_exception(_refusal(why, self._max_wait_s))

    def _admit(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            turn = self._waiting.pop(ticket)
            if not turn.done():
                turn.set_result(None)

    def _note(self, completion: Completion, status: str, started: float) -> None:
        self._record(unserved_record(completion, self._replica, status, started, self._clock.now()))

    # Listening.

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """An attempt ended: its latency is a sample."""
        latency_s = result.reply_s if result.ttft_s is None else result.ttft_s
        if result.outcome is Outcome.OK and latency_s is not None:
            streamed = result.ttft_s is not None
            self._admit(self._gate.observe(endpoint.id, latency_s, now, streamed=streamed))

    def decided(self, decided: Decided) -> None:
        """Nothing: only what was answered counts."""

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """Nothing: only what was answered counts."""

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """Nothing: the attempt's end tells it too."""

    def transitioned(self, action: Transitioned) -> None:
        """Nothing: health is not load."""

    def domain_changed(self, action: DomainChanged) -> None:
        """Nothing: health is not load."""


def _cost(completion: Completion) -> float:
    """Return the work a request is, in tokens: its text by its size, and the most it may output. Never 0."""
    fields, route = completion.fields, completion.route
    said = fields.get("messages", fields.get("input"))
    size_bytes = memoryview(said).nbytes if said is not None else 0
    return 1.0 + size_bytes / CHARACTERS_PER_TOKEN + route.max_output_tokens


def _refusal(why: Why, retry_after_s: float) -> ServiceError:
    if why is Why.OWN_QUEUE_FULL:
        message = "as many requests of this tenant wait for their turn as may"
        return TenantLimitError("TENANT_QUEUE_FULL", message, retry_after_s=retry_after_s)
    reason = "SHUTTING_DOWN" if why is Why.CLOSING else "OVERLOADED"
    message = f"more is asked than can be served now, and the request was turned away: {_TOLD[why]}"
    return OverloadedError(reason, message, retry_after_s=retry_after_s)
