"""Entries of the usage ledger on their way into the history, each exactly once.

Rule of this file: an entry is durable from `add` on and leaves only when it is durable elsewhere. What goes together is
written down before it goes, so that a run that died in between can ask whether it arrived.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from service.store.database import Database

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS outbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        body BLOB NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS shipment (last INTEGER NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Shipment:
    """Entries that go together. `resumed` tells that an earlier run may have delivered them already."""

    last: int
    bodies: tuple[bytes, ...]
    resumed: bool


class Outbox:
    """A queue on the disk."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Add entries, each a unique id and a body; an id that is there already is left out. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR IGNORE INTO outbox (id, body) VALUES (?, ?)", entries)

        await self._database.run(job)

    async def pack(self, most: int) -> Shipment | None:
        """Return the shipment that is under way, or else begin one of up to `most` entries. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> Shipment | None:
            begun = connection.execute("SELECT last FROM shipment").fetchone()
            if begun is None:
                (last,) = connection.execute(
                    "SELECT max(number) FROM (SELECT number FROM outbox ORDER BY number LIMIT ?)", (most,)
                ).fetchone()
                if last is None:
                    return None
                connection.execute("INSERT INTO shipment VALUES (?)", (last,))
            else:
                (last,) = begun
            rows = connection.execute("SELECT body FROM outbox WHERE number <= ? ORDER BY number", (last,))
            return Shipment(last, tuple(body for (body,) in rows), resumed=begun is not None)

        return await self._database.run(job)

    async def delivered(self, shipment: Shipment) -> None:
        """Remove a shipment that has arrived. Raises StoreError."""

        def job(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM outbox WHERE number <= ?", (shipment.last,))
            connection.execute("DELETE FROM shipment")

        await self._database.run(job)
