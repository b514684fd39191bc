"""What serves requests, put together: each layer stands before the next.

    edges → LimitedServing → IdempotentServing → LedgeredServing → FairServing → Completer

A replay of a kept answer counts against its tenant's limits, but makes no entry and takes no place; an execution that
goes on without its caller does both.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from analytics.segments import SegmentWriter
from service.clock import Clock
from service.complete import Completer
from service.config import Config
from service.fair import FairServing
from service.history import Sink
from service.idempotency import IdempotentServing
from service.ledger import Clerk, Ledger, LedgeredServing
from service.limited import LimitedServing, spending
from service.providers.base import Adapter
from service.providers.transport import Transport
from service.router import Router
from service.serving import Serving
from service.sessions import SessionStore
from service.store.state import state_store
from service.tenancy.accounts import Account
from service.tenancy.gate import Gate
from service.tenants import accounts_for, own_adapters, spent_usd


@dataclass(frozen=True, slots=True)
class Stack:
    """All layers together: `serving` is the outermost."""

    serving: Serving
    _fair: FairServing
    _keyed: IdempotentServing

    def close(self) -> None:
        """Let nobody wait for a turn any more."""
        self._fair.close()

    async def drain(self, timeout_s: float) -> None:
        """Let executions finish whose callers have left."""
        await self._keyed.drain(timeout_s)


@asynccontextmanager
async def stacked(
    config: Config,
    router: Router,
    adapters: Mapping[str, Adapter],
    transport: Transport,
    sink: Sink,
    clock: Clock,
    gate: Gate,
) -> AsyncIterator[Stack]:
    """Serve requests within the block; at its end everything served is in the ledger. `adapters` are by provider."""
    history, replica = config.data_dir / "history", config.replica
    async with state_store(config, clock) as state:
        ledger = Ledger(
            state.outbox,
            history,
            SegmentWriter(history, f"{replica}-usage", epoch=time.time_ns()),
            ship_every_s=config.history.flush_s,
        )
        accounts = await _accounts(config, ledger, clock) if config.tenants else {}
        async with ledger.running():
            sessions = SessionStore(config.sessions, clock, state.conversations)
            own = own_adapters(config.tenants, config.providers, transport)
            clerk = Clerk(ledger, replica, spending(accounts, clock) if accounts else None)
            completer = Completer(router, adapters, sessions, sink, clerk.enter, replica, own)
            fair = FairServing(completer, gate, clock, sink, replica, max_wait_s=config.overload.max_wait_s)
            router.listen(fair)
            ledgered = LedgeredServing(fair, ledger, wait=config.usage.acknowledge == "stored")
            keyed = IdempotentServing(ledgered, state.results, config.idempotency, clock, sink, replica)
            serving: Serving = keyed
            if accounts:
                serving = LimitedServing(keyed, accounts, router.engine.catalogue, clock, sink, replica)
            yield Stack(serving, fair, keyed)


async def _accounts(config: Config, ledger: Ledger, clock: Clock) -> dict[str, Account]:
    """Return the tenants' accounts as the ledger leaves them, with what a crash has left in its outbox."""
    await ledger.ship()
    spent = await asyncio.to_thread(spent_usd, config.data_dir / "history", config.tenants, clock.now())
    return accounts_for(config.tenants, clock.now(), spent)
