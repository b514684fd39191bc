"""The results kept under idempotency keys.

Rule of this file: a key is marked before its request is sent, and unmarked only when it is known that nothing was
served. So what is found marked after a restart may have been executed, and is not executed again while its row lives.
"""

import sqlite3
import zlib
from dataclasses import dataclass
from enum import IntEnum

from service.store.database import Database
from service.store.seal import Seal

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS results (
        id INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        request_id TEXT NOT NULL,
        state INTEGER NOT NULL,
        expires REAL NOT NULL,
        size_bytes INTEGER NOT NULL,
        body BLOB,
        UNIQUE (tenant, key))""",
    "CREATE INDEX IF NOT EXISTS results_by_expiry ON results (expires)",
    "CREATE TABLE IF NOT EXISTS results_size (bytes INTEGER NOT NULL)",
    "INSERT INTO results_size SELECT 0 WHERE NOT EXISTS (SELECT * FROM results_size)",
    """CREATE TRIGGER IF NOT EXISTS results_added AFTER INSERT ON results
        BEGIN UPDATE results_size SET bytes = bytes + new.size_bytes; END""",
    """CREATE TRIGGER IF NOT EXISTS results_changed AFTER UPDATE OF size_bytes ON results
        BEGIN UPDATE results_size SET bytes = bytes + new.size_bytes - old.size_bytes; END""",
    """CREATE TRIGGER IF NOT EXISTS results_removed AFTER DELETE ON results
        BEGIN UPDATE results_size SET bytes = bytes - old.size_bytes; END""",
)

_ROW_BYTES = 512  # of a row without its body, with its part of the indexes
_PURGED_AT_ONCE = 1000


class State(IntEnum):
    """What became of the request that came first with a key."""

    RUNNING = 1
    KEPT = 2
    TOO_LARGE = 3


@dataclass(frozen=True, slots=True)
class ResultKey:
    """A caller's key; each tenant has its own."""

    tenant: str
    key: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is known under a key. `body` is there when the state is KEPT."""

    state: State
    fingerprint: bytes
    request_id: str
    body: bytes | None


class Results:
    """Results of at most `max_bytes` together, each for `ttl_s` seconds; beyond the size the oldest go first."""

    def __init__(self, database: Database, seal: Seal, *, ttl_s: float, max_bytes: int) -> None:
        self._database = database
        self._seal = seal
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes

    async def claim(self, key: ResultKey, fingerprint: bytes, request_id: str, now: float) -> Found | None:
        """Mark a key as in execution and return None, or return what is known under it. Raises StoreError."""
        place = _place(key)

        def job(connection: sqlite3.Connection) -> Found | None:
            row = connection.execute(
                "SELECT state, fingerprint, request_id, body FROM results WHERE tenant = ? AND key = ? AND expires > ?",
                (key.tenant, key.key, now),
            ).fetchone()
            if row is not None:
                state, first, first_id, sealed = row
                body = None if sealed is None else zlib.decompress(self._seal.open(sealed, place))
                return Found(State(state), first, first_id, body)
            connection.execute("DELETE FROM results WHERE tenant = ? AND key = ?", (key.tenant, key.key))
            connection.execute(
                "INSERT INTO results (tenant, key, fingerprint, request_id, state, expires, size_bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key.tenant, key.key, fingerprint, request_id, State.RUNNING, now + self._ttl_s, _ROW_BYTES),
            )
            return None

        return await self._database.run(job)

    async def keep(self, key: ResultKey, body: bytes | None, now: float) -> int:
        """Keep the result of a marked key, None for one that is too large to keep. Return how many older results had
        to go for it. Raises StoreError.
        """
        place = _place(key)

        def job(connection: sqlite3.Connection) -> int:
            sealed = None if body is None else self._seal.seal(zlib.compress(body, 1), place)
            state = State.TOO_LARGE if sealed is None else State.KEPT
            connection.execute(
                "UPDATE results SET state = ?, body = ?, size_bytes = ?, expires = ? WHERE tenant = ? AND key = ?",
                (state, sealed, _ROW_BYTES + len(sealed or b""), now + self._ttl_s, key.tenant, key.key),
            )
            return self._make_room(connection)

        return await self._database.run(job)

    async def release(self, key: ResultKey) -> None:
        """Forget a marked key: nothing was served under it. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM results WHERE tenant = ? AND key = ?", (key.tenant, key.key))

        await self._database.run(job)

    async def purge(self, now: float) -> None:
        """Remove what has expired. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM results WHERE id IN (SELECT id FROM results WHERE expires <= ? LIMIT ?)",
                (now, _PURGED_AT_ONCE),
            )

        await self._database.run(job)

    def _make_room(self, connection: sqlite3.Connection) -> int:
        evicted = 0
        while connection.execute("SELECT bytes FROM results_size").fetchone()[0] > self._max_bytes:
            oldest = connection.execute(
                "DELETE FROM results WHERE id = (SELECT min(id) FROM results WHERE state <> ?)", (State.RUNNING,)
            )
            if not oldest.rowcount:
                break
            evicted += 1
        return evicted


def _place(key: ResultKey) -> str:
    return f"result\0{key.tenant}\0{key.key}"
