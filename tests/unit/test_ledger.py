"""The usage ledger (C-05): an entry for each served request, once, whatever dies or refuses on the way."""

import asyncio
import shutil
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analytics.records import UsageRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from routing.model import Endpoint, RouteRequest
from routing.outcomes import Outcome
from service.completion import Begun, Completion, Report, Served
from service.errors import AttemptReport
from service.ledger import Clerk, Ledger, LedgeredServing
from service.providers.base import Chunk, Operation, Reply
from service.serving import Event
from service.store import outbox
from service.store.database import Database
from service.store.errors import StoreError
from service.store.outbox import Outbox, Shipment

ENDPOINT = Endpoint("p:m", "p", "r", "z", "m", "pm", 0, frozenset(), None, 2.0, 3.0)
ATTEMPTS = tuple(AttemptReport(n, "d", "p:m", "p", "r", Outcome.OK, 200, "", 0.5) for n in (1, 2))


@dataclass
class Home:
    """A data directory that outlives the processes over it."""

    directory: Path
    lives: int = 0
    databases: list[Database] = field(default_factory=list)

    @property
    def history(self) -> Path:
        return self.directory / "history"

    async def open(self) -> tuple[Database, Ledger, SegmentWriter]:
        self.lives += 1
        database = Database(self.directory / "state" / "r.sqlite", outbox.SCHEMA)
        await database.start()
        self.databases.append(database)
        segments = SegmentWriter(self.history, "r-usage", epoch=self.lives)
        return database, Ledger(Outbox(database), self.history, segments, ship_every_s=0.001), segments

    def entries(self) -> list[tuple[Any, ...]]:
        with connect(self.history) as connection:
            return connection.execute("SELECT entry_id, count(*) FROM usage GROUP BY ALL ORDER BY ALL").fetchall()


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[Home]:
    home = Home(tmp_path)
    yield home
    for database in home.databases:
        await database.aclose()


def _entry(entry_id: str, time: float = 1_750_000_000.25) -> UsageRecord:
    return UsageRecord(
        replica="r", time=time, entry_id=entry_id, request_id="q", edge="grpc", operation="chat", model="m", agent="",
        tenant="t", session_id="", endpoint="p:m", provider="p", region="r", attempts=2, input_tokens=5,
        output_tokens=None, input_usd_per_mtok=2.0, output_usd_per_mtok=3.0, cost_usd=0.25,
    )  # fmt: skip


async def _until_shipped(home: Home, count: int) -> None:
    async with asyncio.timeout(20):
        while sum(n for _, n in await asyncio.to_thread(home.entries)) < count:  # noqa: ASYNC110  # files set no event
            await asyncio.sleep(0.005)


async def test_c05_entries_reach_the_history_while_the_service_runs(home: Home) -> None:
    _, ledger, _ = await home.open()
    async with ledger.running():
        for n in range(3):
            ledger.put(_entry(str(n)))
        await _until_shipped(home, 3)
        assert home.entries() == [("0", 1), ("1", 1), ("2", 1)]


async def test_c05_the_last_entries_are_in_the_history_when_the_service_has_stopped(home: Home) -> None:
    _, ledger, _ = await home.open()
    async with ledger.running():
        ledger.put(_entry("last"))
    assert home.entries() == [("last", 1)]


@pytest.mark.parametrize("died", ["before it was written", "after it was written", "before anything"])
async def test_c05_a_death_on_the_way_loses_and_doubles_nothing(home: Home, died: str) -> None:
    """A shipment is written down, then written as a segment, then removed; death may come between any two of them."""
    database, ledger, segments = await home.open()
    for batch in (["0", "1"], ["2"]):
        for entry_id in batch:
            ledger.put(_entry(entry_id))
        await ledger.settle()
    if died != "before anything":
        shipment = await Outbox(database).pack(1)
        assert shipment is not None
        if died == "after it was written":
            await asyncio.to_thread(segments.write, "usage", [_entry("0"), _entry("1")])
    segments.close()
    await database.aclose()
    _, ledger, _ = await home.open()
    async with ledger.running():
        ledger.put(_entry("of the next life"))
    assert home.entries() == [("0", 1), ("1", 1), ("2", 1), ("of the next life", 1)]


async def test_c05_stopping_waits_for_a_segment_that_is_being_written(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment appears when its thread is done with it, also when nobody waits for that thread any more."""
    _, ledger, segments = await home.open()
    writing, go_on, write = threading.Event(), threading.Event(), segments.write

    def slow(stream: str, records: Any) -> Path:
        writing.set()
        go_on.wait(20)
        return write(stream, records)

    monkeypatch.setattr(segments, "write", slow)
    async with ledger.running():
        ledger.put(_entry("one"))
        await asyncio.to_thread(writing.wait, 20)
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert home.entries() == [("one", 1)]


async def test_c05_those_who_wait_together_share_a_commit(home: Home) -> None:
    """Callers in a closed loop: as each is answered, it comes with its next entry."""
    database, ledger, segments = await home.open()
    commits: list[str] = []
    await database.run(lambda c: c.set_trace_callback(commits.append))

    async def caller(name: int) -> None:
        for n in range(20):
            ledger.put(_entry(f"{name}-{n}"))
            await ledger.settle()

    await asyncio.gather(*(caller(name) for name in range(50)))
    assert commits.count("COMMIT") < 100, "a thousand entries, of which fifty come at a time"
    segments.close()


async def test_c05_a_caller_who_leaves_takes_no_entry_with_him(home: Home) -> None:
    """He waits for the disk, on behalf of all, and leaves before it refuses."""
    database, ledger, _ = await home.open()
    await database.run(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())
    held = threading.Event()
    busy = asyncio.create_task(database.run(lambda _: held.wait(20)))
    ledger.put(replace(_entry("of another"), agent="x" * 200_000))
    leaving = asyncio.create_task(ledger.settle())
    for _ in range(10):
        await asyncio.sleep(0)  # until it waits for the disk
    leaving.cancel()
    await asyncio.wait([leaving])
    held.set()
    await busy
    await database.run(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchall())
    async with ledger.running():
        pass
    assert home.entries() == [("of another", 1)]


async def test_c05_entries_wait_while_the_disk_refuses(home: Home) -> None:
    database, ledger, _ = await home.open()
    async with ledger.running():
        await database.run(lambda c: c.execute("PRAGMA max_page_count = 1").fetchall())  # SQLite's way to be full
        ledger.put(replace(_entry("patient"), agent="x" * 200_000))
        await ledger.settle()
        assert home.entries() == []
        await database.run(lambda c: c.execute("PRAGMA max_page_count = 100000").fetchall())
        ledger.put(_entry("next"))
        await _until_shipped(home, 2)
    assert home.entries() == [("next", 1), ("patient", 1)]


async def test_c05_what_was_stored_although_the_disk_complained_is_not_doubled(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit arrives, its confirmation does not: the batch comes again, with others beside it."""
    _, ledger, _ = await home.open()
    add, complaints = Outbox.add, iter([True])

    async def complains_once(queue: Outbox, rows: Sequence[tuple[str, bytes]]) -> None:
        await add(queue, rows)
        if next(complaints, False):
            raise StoreError("disk I/O error")

    monkeypatch.setattr(Outbox, "add", complains_once)
    ledger.put(_entry("0"))
    ledger.put(_entry("1"))
    await ledger.settle()
    ledger.put(_entry("2"))
    async with ledger.running():
        await ledger.settle()
        ledger.put(_entry("3"))
    assert home.entries() == [(str(n), 1) for n in range(4)]


async def test_c05_what_is_entered_during_a_shipment_goes_with_the_next(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load there is always more: shipping all of it would write one small segment after the other for ever."""
    _, ledger, _ = await home.open()
    delivered, more = Outbox.delivered, iter("12345")

    async def while_more_comes(queue: Outbox, shipment: Shipment) -> None:
        await delivered(queue, shipment)
        ledger.put(_entry(next(more)))
        await ledger.settle()

    monkeypatch.setattr(Outbox, "delivered", while_more_comes)
    ledger.put(_entry("0"))
    await ledger.settle()
    await ledger.ship()
    assert home.entries() == [("0", 1)]
    await ledger.ship()
    assert home.entries() == [("0", 1), ("1", 1)]


async def test_c05_a_history_that_cannot_be_written_holds_the_outbox(home: Home) -> None:
    database, ledger, _ = await home.open()
    await asyncio.to_thread(shutil.rmtree, home.history)
    await asyncio.to_thread(home.history.write_text, "a file is in the way")
    async with ledger.running():
        ledger.put(_entry("held"))
    shipment = await Outbox(database).pack(100)
    assert shipment is not None
    assert len(shipment.bodies) == 1


@dataclass
class Inner:
    """Serves whatever is asked, and enters it."""

    clerk: Clerk
    report: Report = field(
        default_factory=lambda: Report("q", ENDPOINT, ATTEMPTS, 5, 2**70, 0.25, "s", 1_750_000_000.25)
    )

    async def complete(self, completion: Completion) -> Served:
        self.clerk.enter(completion, self.report, "ok")
        return Served(Reply(200, b"{}", {}, 5, 7), self.report)

    async def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        yield Begun(ENDPOINT, 1, "d", {})
        yield Chunk(b"{}")
        self.clerk.enter(completion, self.report, "ok")
        yield self.report


def _completion(**others: Any) -> Completion:
    route = RouteRequest("m", tenant="t", agent="a")
    return Completion(Operation.CHAT, {}, route, "q", "http", **others)


async def test_c05_an_entry_has_what_was_asked_served_and_charged(home: Home) -> None:
    """A count beyond all bounds is not allowed to hold up the ledger."""
    _, ledger, _ = await home.open()
    serving = LedgeredServing(Inner(Clerk(ledger, "r")), ledger, wait=False)
    async with ledger.running():
        await serving.complete(_completion())
        events = [event async for event in serving.stream(_completion(stream=True))]
        assert isinstance(events[-1], Report), "the report stays the last"
    with connect(home.history) as connection:
        rows = connection.execute("SELECT * EXCLUDE (entry_id, time) FROM usage").fetchall()
        assert len(connection.execute("SELECT DISTINCT entry_id FROM usage").fetchall()) == 2
    row = ("r", "q", "http", "chat", "m", "a", "t", "s", "p:m", "p", "r", 2, 5, None, 2.0, 3.0, 0.25, "ok")
    assert rows == [row, row]


async def test_c05_an_entry_that_no_row_can_hold_is_refused_alone(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    """Those before and after it are stored, and its request is named."""
    _, ledger, _ = await home.open()
    clerk = Clerk(ledger, "r\udcff")
    async with ledger.running():
        ledger.put(_entry("before"))
        clerk.enter(_completion(), Inner(clerk).report, "ok")
        ledger.put(_entry("after"))
    assert home.entries() == [("after", 1), ("before", 1)]
    assert "request q is not in the ledger" in caplog.text


async def test_c05_what_an_earlier_build_left_in_the_outbox_is_shipped(home: Home) -> None:
    """Its rows hold one entry each, and entries had no status."""
    database, ledger, _ = await home.open()
    fields = {name: value for name, value in asdict(_entry("earlier")).items() if name != "status"}
    await Outbox(database).add([("earlier", msgspec.msgpack.encode(fields))])
    async with ledger.running():
        ledger.put(_entry("now"))
    assert home.entries() == [("earlier", 1), ("now", 1)]
    with connect(home.history) as connection:
        assert connection.execute("SELECT DISTINCT status FROM usage").fetchall() == [("ok",)]


@pytest.mark.parametrize("broken", ["put", "settle"])
async def test_f20_what_was_served_is_answered_whatever_becomes_of_the_books(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    _, ledger, segments = await home.open()

    def stumble(*entries: UsageRecord) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ledger, broken, stumble)
    served = await LedgeredServing(Inner(Clerk(ledger, "r")), ledger, wait=True).complete(_completion())
    assert served.report.request_id == "q"
    assert "the ledger" in caplog.text
    segments.close()


@pytest.mark.parametrize(("wait", "key", "durable"), [(True, "", True), (False, "k", True), (False, "", False)])
async def test_c05_an_acknowledged_entry_is_durable(home: Home, *, wait: bool, key: str, durable: bool) -> None:
    """Nothing carries entries on here: what is in the outbox was put there before the answer."""
    database, ledger, segments = await home.open()
    serving = LedgeredServing(Inner(Clerk(ledger, "r")), ledger, wait=wait)
    await asyncio.gather(*(serving.complete(_completion(idempotency_key=key)) for _ in range(5)))
    shipment = await Outbox(database).pack(100)
    bodies = shipment.bodies if shipment else ()
    entries = [entry for body in bodies for entry in msgspec.msgpack.decode(body, type=list[UsageRecord])]
    assert len(entries) == (5 if durable else 0)
    segments.close()
