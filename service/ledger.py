"""The usage ledger: one entry per request that has used something, with the price that was applied (C-05).

Rule of this file: an entry is made where a request ends, once, whatever attempts, hedges and failovers it took, and
whether or not its caller has stayed; an answer that is given again under an idempotency key makes none. From memory an
entry goes to the outbox within `_LINGER_S`, from there into the history's stream `usage`, and the outbox lets go of it
only when it is there. A crash loses what has not reached the outbox, and doubles nothing.

The request records of the history are no ledger: they are there to be analysed, may lose rows, and know no prices.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

import duckdb
import msgspec

from analytics.errors import HistoryError
from analytics.records import UsageRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from service.completion import Completion, Report, Served
from service.serving import Event, Serving
from service.store.errors import StoreError
from service.store.outbox import Outbox, Shipment

log = logging.getLogger(__name__)

_LINGER_S = 0.02
_MOST_WAITING = 100_000
_MOST_BATCHES_AT_ONCE = 500
_MOST_TOKENS = 2**63 - 1
# Rows of the outbox that were written before entries came in batches hold one entry each.
_ROW = msgspec.msgpack.Decoder(list[UsageRecord] | UsageRecord)


class _Waiting(NamedTuple):
    """An entry as it waits in memory: encoded at once, so that one that cannot be is refused alone."""

    id: str
    body: msgspec.Raw


class Ledger:
    """Takes entries, and carries them through `outbox` into the history below `root`.

    What is entered in the same moment is one batch, and one row of the outbox, from then on.
    """

    def __init__(self, outbox: Outbox, root: Path, segments: SegmentWriter, *, ship_every_s: float) -> None:
        self._outbox = outbox
        self._root = root
        self._segments = segments
        self._ship_every_s = ship_every_s
        self._waiting: list[_Waiting] = []
        self._refused: list[list[_Waiting]] = []
        self._filled = asyncio.Event()
        self._stopping = asyncio.Event()
        self._storing = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self._current: asyncio.Task[None] | None = None

    def put(self, entry: UsageRecord) -> None:
        """Take an entry. It is durable soon; `settle` waits for it. Raises what encoding raises for one that no row
        can hold.
        """
        self._waiting.append(_Waiting(entry.entry_id, msgspec.Raw(msgspec.msgpack.encode(entry))))
        self._filled.set()
        if len(self._waiting) > _MOST_WAITING:
            _report_loss([self._waiting.pop(0)])

    async def settle(self) -> None:
        """Return when every entry taken so far is durable, or the disk has refused.

        Whoever stops waiting takes nothing with him: entries on their way belong to all.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._store(), name="usage ledger")
        await asyncio.shield(self._next)

    async def _store(self) -> None:
        async with self._storing:
            # Whoever comes from here on shares the commit after this one.
            self._current, self._next = self._next, None
            batches = [*self._refused, self._waiting] if self._waiting else self._refused
            self._waiting, self._refused = [], []
            self._filled.clear()
            if not batches:
                return
            try:
                await self._outbox.add([_row(batch) for batch in batches])
            except StoreError as error:
                # Batches stay as they are: what was stored after all is known by its id when it comes again.
                left = sum(map(len, batches))
                while left > _MOST_WAITING:
                    left -= len(batches[0])
                    _report_loss(batches.pop(0))
                self._refused = batches
                log.warning("%d usage entries wait in memory: %s", left, error)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Carry entries on within the block; at its end, all of them."""
        tasks = [asyncio.create_task(work, name="usage ledger") for work in (self._store_soon(), self._ship_often())]
        try:
            yield
        finally:
            # Not cancelled: a segment that is being written would still appear, and be taken for missing.
            self._stopping.set()
            self._filled.set()
            await asyncio.gather(*tasks)
            await self.settle()
            await self.ship()
            self._segments.close()

    async def _store_soon(self) -> None:
        while not self._stopping.is_set():
            await self._filled.wait()
            await asyncio.sleep(_LINGER_S)
            await self.settle()
            if self._refused:
                self._filled.set()

    async def _ship_often(self) -> None:
        while not self._stopping.is_set():
            await self.ship()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ship_every_s):
                    await self._stopping.wait()

    async def ship(self) -> None:
        """Bring what is in the outbox into the history. Once at a time: before `running`, or by it."""
        try:
            while (shipment := await self._outbox.pack(_MOST_BATCHES_AT_ONCE)) is not None:
                await asyncio.to_thread(self._deliver, shipment)
                await self._outbox.delivered(shipment)
                if not shipment.resumed and len(shipment.bodies) < _MOST_BATCHES_AT_ONCE:
                    break  # what has come meanwhile goes with the next: a segment costs the same for one as for many
        except (StoreError, HistoryError, OSError, duckdb.Error) as error:
            log.warning("usage entries wait in the outbox: %s", error)
        except Exception:
            log.exception("usage entries wait in the outbox")

    def _deliver(self, shipment: Shipment) -> None:
        entries = [entry for body in shipment.bodies for entry in _entries(body)]
        if not (shipment.resumed and self._has_arrived(entries[0])):
            self._segments.write(UsageRecord.stream, entries)

    def _has_arrived(self, entry: UsageRecord) -> bool:
        """Tell whether the history has the shipment of which `entry` is the first: a segment is there whole or not."""
        with connect(self._root) as connection:
            near = "time BETWEEN make_timestamp(?::BIGINT) AND make_timestamp(?::BIGINT)"
            microseconds = round(entry.time * 1e6)
            rows = connection.execute(
                f"SELECT 1 FROM usage WHERE {near} AND entry_id = ?",  # noqa: S608  # no value is in it
                [microseconds - 1, microseconds + 1, entry.entry_id],
            ).fetchall()
        return bool(rows)


def _row(batch: Sequence[_Waiting]) -> tuple[str, bytes]:
    return batch[0].id, msgspec.msgpack.encode([entry.body for entry in batch])


def _entries(body: bytes) -> list[UsageRecord]:
    found = _ROW.decode(body)
    return found if isinstance(found, list) else [found]


def _report_loss(entries: Sequence[_Waiting]) -> None:
    ids = ", ".join(entry.id for entry in entries)
    log.critical("the disk refuses the usage ledger: lost are the entries %s", ids)


class Clerk:
    """Makes the entries, and tells `entered` of each. What it does not manage disturbs nobody (F-20)."""

    def __init__(
        self, ledger: Ledger, replica: str, entered: Callable[[Completion, Report], None] | None = None
    ) -> None:
        self._ledger = ledger
        self._replica = replica
        self._entered = entered
        self._ids = map(f"{secrets.token_hex(8)}-{{}}".format, count(1))

    def enter(self, completion: Completion, report: Report, status: str) -> None:
        """Enter what a request has used that ended so: "ok", or the reason why it was not served whole."""
        try:
            self._ledger.put(_entry(next(self._ids), completion, report, status, self._replica))
            if self._entered is not None:
                self._entered(completion, report)
        except Exception:
            log.critical("request %s is not in the ledger", report.request_id, exc_info=True)


class LedgeredServing:
    """Stands before `inner`, which makes the entries. With `wait`, and with an idempotency key in any case, a request
    is answered when its entry is durable.
    """

    def __init__(self, inner: Serving, ledger: Ledger, *, wait: bool) -> None:
        self._inner = inner
        self._ledger = ledger
        self._wait = wait

    async def complete(self, completion: Completion) -> Served:
        """See `Serving.complete`."""
        served = await self._inner.complete(completion)
        if self._waits(completion):
            await self._settle(completion)
        return served

    def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        """See `Serving.stream`. The report comes last of all, when the stream's session and entry are durable."""
        items = self._inner.stream(completion)
        return self._settled(completion, items) if self._waits(completion) else items

    async def _settled(
        self, completion: Completion, events: AsyncGenerator[Event, None]
    ) -> AsyncGenerator[Event, None]:
        report: Report | None = None
        async with aclosing(events) as items:
            async for item in items:
                if isinstance(item, Report):
                    report = item
                else:
                    yield item
        if report is not None:
            await self._settle(completion)
            yield report

    def _waits(self, completion: Completion) -> bool:
        return self._wait or bool(completion.idempotency_key)

    async def _settle(self, completion: Completion) -> None:
        try:
            await self._ledger.settle()
        except Exception:
            # What was served is answered, whatever becomes of the books (F-20).
            log.critical("request %s may be lost to the ledger", completion.request_id, exc_info=True)


def _entry(entry_id: str, completion: Completion, report: Report, status: str, replica: str) -> UsageRecord:
    endpoint = report.endpoint
    return UsageRecord(
        replica=replica,
        time=report.time,
        entry_id=entry_id,
        request_id=report.request_id,
        edge=completion.edge,
        operation=completion.operation.value,
        model=endpoint.model,
        agent=completion.route.agent,
        tenant=completion.route.tenant,
        session_id=report.session_id,
        endpoint=endpoint.id,
        provider=endpoint.provider,
        region=endpoint.region,
        attempts=len(report.attempts),
        input_tokens=_tokens(report.input_tokens),
        output_tokens=_tokens(report.output_tokens),
        input_usd_per_mtok=endpoint.input_usd_per_mtok,
        output_usd_per_mtok=endpoint.output_usd_per_mtok,
        cost_usd=report.cost_usd,
        status=status,
    )


def _tokens(value: int | None) -> int | None:
    """Return a count a file can hold; a provider may say anything."""
    return value if value is not None and 0 <= value <= _MOST_TOKENS else None
