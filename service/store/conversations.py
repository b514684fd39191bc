"""The conversations of sessions: a row per conversation, and a row per turn, so that a turn costs its own size.

Rule of this file: the turns of a conversation are stored in order and without gaps; a conversation that begins anew
replaces the one before it in the same transaction.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from service.store.database import Database
from service.store.seal import Seal

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS conversations (
        id INTEGER PRIMARY KEY,
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        endpoint TEXT NOT NULL,
        used_at REAL NOT NULL,
        size_bytes INTEGER NOT NULL,
        UNIQUE (tenant, name))""",
    "CREATE INDEX IF NOT EXISTS conversations_by_use ON conversations (used_at)",
    """CREATE TABLE IF NOT EXISTS turns (
        conversation INTEGER NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        number INTEGER NOT NULL,
        messages BLOB NOT NULL,
        PRIMARY KEY (conversation, number))""",
    "CREATE TABLE IF NOT EXISTS conversations_size (bytes INTEGER NOT NULL, number INTEGER NOT NULL)",
    "INSERT INTO conversations_size SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM conversations_size)",
    """CREATE TRIGGER IF NOT EXISTS conversations_added AFTER INSERT ON conversations
        BEGIN UPDATE conversations_size SET bytes = bytes + new.size_bytes, number = number + 1; END""",
    """CREATE TRIGGER IF NOT EXISTS conversations_changed AFTER UPDATE OF size_bytes ON conversations
        BEGIN UPDATE conversations_size SET bytes = bytes + new.size_bytes - old.size_bytes; END""",
    """CREATE TRIGGER IF NOT EXISTS conversations_removed AFTER DELETE ON conversations
        BEGIN UPDATE conversations_size SET bytes = bytes - old.size_bytes, number = number - 1; END""",
)

_PURGED_AT_ONCE = 1000
_MESSAGES = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A caller's session id; each tenant has its own."""

    tenant: str
    name: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation as it was stored: its turns in order, each a list of messages as JSON."""

    turns: tuple[tuple[msgspec.Raw, ...], ...]
    endpoint_id: str
    used_at: float


class Conversations:
    """Keeps at most `max_number` conversations of `max_bytes` together, each until it is unused for `ttl_s` seconds.

    Beyond a bound the longest unused go first.
    """

    def __init__(self, database: Database, seal: Seal, *, ttl_s: float, max_number: int, max_bytes: int) -> None:
        self._database = database
        self._seal = seal
        self._ttl_s = ttl_s
        self._max_number = max_number
        self._max_bytes = max_bytes

    async def load(self, key: SessionKey, now: float) -> Conversation | None:
        """Return a conversation, None when it is unknown or has expired. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> Conversation | None:
            found = connection.execute(
                "SELECT id, endpoint, used_at FROM conversations WHERE tenant = ? AND name = ? AND used_at >= ?",
                (key.tenant, key.name, now - self._ttl_s),
            ).fetchone()
            if found is None:
                return None
            rows = connection.execute(
                "SELECT number, messages FROM turns WHERE conversation = ? ORDER BY number", (found[0],)
            )
            turns = tuple(
                tuple(_MESSAGES.decode(self._seal.open(sealed, _place(key, number)))) for number, sealed in rows
            )
            return Conversation(turns, found[1], found[2])

        return await self._database.run(job)

    async def append(
        self,
        key: SessionKey,
        number: int,
        messages: Sequence[msgspec.Raw],
        endpoint_id: str,
        used_at: float,
        size_bytes: int,
    ) -> bool:
        """Add a turn as number `number` of its conversation; number 0 begins the conversation anew.

        `size_bytes` is that of the whole conversation. Returns False, and adds nothing, when the turns before it are
        gone: they expired, or had to make room. Raises StoreError.
        """

        def job(connection: sqlite3.Connection) -> bool:
            if number == 0:
                connection.execute("DELETE FROM conversations WHERE tenant = ? AND name = ?", (key.tenant, key.name))
                connection.execute(
                    "INSERT INTO conversations (tenant, name, endpoint, used_at, size_bytes) VALUES (?, ?, '', 0, 0)",
                    (key.tenant, key.name),
                )
            updated = connection.execute(
                "UPDATE conversations SET endpoint = ?, used_at = ?, size_bytes = ? WHERE tenant = ? AND name = ?"
                " RETURNING id",
                (endpoint_id, used_at, size_bytes, key.tenant, key.name),
            ).fetchone()
            if updated is None:
                return False
            sealed = self._seal.seal(msgspec.json.encode(list(messages)), _place(key, number))
            connection.execute("INSERT INTO turns VALUES (?, ?, ?)", (updated[0], number, sealed))
            self._make_room(connection)
            return True

        return await self._database.run(job)

    async def purge(self, now: float) -> None:
        """Remove what has expired. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM conversations WHERE id IN (SELECT id FROM conversations WHERE used_at < ? LIMIT ?)",
                (now - self._ttl_s, _PURGED_AT_ONCE),
            )

        await self._database.run(job)

    def _make_room(self, connection: sqlite3.Connection) -> None:
        while True:
            size_bytes, number = connection.execute("SELECT bytes, number FROM conversations_size").fetchone()
            if number <= 1 or (number <= self._max_number and size_bytes <= self._max_bytes):
                return
            connection.execute(
                "DELETE FROM conversations WHERE id = (SELECT id FROM conversations ORDER BY used_at, id LIMIT 1)"
            )


def _place(key: SessionKey, number: int) -> str:
    return f"turn\0{key.tenant}\0{key.name}\0{number}"
