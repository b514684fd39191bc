"""The state store put together: one file, its tables, and the regular removal of what has expired."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from service.clock import Clock
from service.config import Config
from service.store import conversations, outbox, results
from service.store.conversations import Conversations
from service.store.database import Database
from service.store.errors import StoreError, StoreUnusableError
from service.store.outbox import Outbox
from service.store.results import Results
from service.store.seal import Seal

log = logging.getLogger(__name__)

_PURGE_S = 60.0
_SCHEMA = (*results.SCHEMA, *conversations.SCHEMA, *outbox.SCHEMA)


@dataclass(frozen=True, slots=True)
class StateStore:
    """What one replica remembers."""

    results: Results
    conversations: Conversations
    outbox: Outbox

    async def purge(self, now: float) -> None:
        """Remove what has expired by `now`. Raises StoreError."""
        await self.results.purge(now)
        await self.conversations.purge(now)


def state_path(config: Config) -> Path:
    """Return the file of the configured replica."""
    return config.data_dir / "state" / f"{config.replica}.sqlite"


@asynccontextmanager
async def state_store(config: Config, clock: Clock) -> AsyncIterator[StateStore]:
    """Open the store for the length of the block. Raises StoreUnusableError, which is an OSError."""
    try:
        seal = Seal(config.state.raw_keys())
    except ModuleNotFoundError as error:
        needed = "state.encryption_keys: expected the extra `encryption` to be installed (routecast[encryption])"
        raise StoreUnusableError(f"{needed}: {error}") from error
    database = Database(state_path(config), _SCHEMA, sync=config.state.sync)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.aclose)
        await database.start()
        store = StateStore(
            Results(database, seal, ttl_s=config.idempotency.ttl_s, max_bytes=config.idempotency.max_total_bytes),
            Conversations(
                database,
                seal,
                ttl_s=config.sessions.ttl_s,
                max_number=config.sessions.max_sessions,
                max_bytes=config.sessions.max_total_bytes,
            ),
            Outbox(database),
        )
        purging = asyncio.create_task(_purge(store, clock), name="state purge")
        try:
            yield store
        finally:
            purging.cancel()
            await asyncio.gather(purging, return_exceptions=True)


async def _purge(store: StateStore, clock: Clock) -> None:
    while True:
        try:
            await store.purge(clock.now())
        except StoreError as error:
            log.warning("expired state could not be removed: %s", error)
        await asyncio.sleep(_PURGE_S)
