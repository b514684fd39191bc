"""Sessions between memory and disk (F-05): whatever leaves one of them early, no conversation is without its past."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from service.config import Sessions
from service.errors import InvalidRequestError, StateUnavailableError
from service.sessions import SessionStore
from service.store import conversations
from service.store.conversations import Conversations, SessionKey
from service.store.database import Database
from service.store.seal import Seal


@dataclass
class Clock:
    time: float = 1000.0

    def now(self) -> float:
        return self.time


@dataclass
class Bench:
    database: Database
    clock: Clock

    def conversations(self, limits: Sessions) -> Conversations:
        return Conversations(
            self.database,
            Seal(),
            ttl_s=limits.ttl_s,
            max_number=limits.max_sessions,
            max_bytes=limits.max_total_bytes,
        )

    def store(self, limits: Sessions | None = None) -> SessionStore:
        """A store with nothing in memory, as after a restart."""
        limits = limits or Sessions()
        return SessionStore(limits, self.clock, self.conversations(limits))

    async def disk(self, *, is_full: bool) -> None:
        pages = 1 if is_full else 100_000  # SQLite's own way to be out of space
        await self.database.run(lambda c: c.execute(f"PRAGMA max_page_count = {pages}").fetchall())


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = Database(tmp_path / "state.sqlite", conversations.SCHEMA)
    await database.start()
    yield Bench(database, Clock())
    await database.aclose()


def _raw(text: str) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode(text))]


async def _turn(store: SessionStore, text: str, name: str = "s") -> list[str]:
    """Take a turn and return what whoever served it received."""
    async with store.turn("t", name) as session:
        received = [msgspec.json.decode(message) for message in store.joined(session, _raw(text))]
        store.answered(session, _raw(text), _raw(text.upper())[0], "e")
    return received


async def test_f05_a_conversation_goes_on_from_the_disk(bench: Bench) -> None:
    await _turn(bench.store(), "a")
    await _turn(bench.store(), "b")
    assert await _turn(bench.store(), "c") == ["a", "A", "b", "B", "c"]


async def test_f05_a_turn_that_was_not_answered_is_nowhere(bench: Bench) -> None:
    store = bench.store()
    await _turn(store, "a")
    with pytest.raises(ZeroDivisionError):
        async with store.turn("t", "s"):
            raise ZeroDivisionError
    assert await _turn(store, "b") == ["a", "A", "b"]


async def test_f05_a_turn_is_stored_though_its_caller_leaves_at_its_end(bench: Bench) -> None:
    store = bench.store()

    async def leave() -> None:
        async with store.turn("t", "s") as session:
            store.answered(session, _raw("a"), _raw("A")[0], "e")
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await leave()
    assert await _turn(bench.store(), "b") == ["a", "A", "b"]


async def test_f05_what_the_disk_forgot_too_early_is_stored_anew_as_a_whole(bench: Bench) -> None:
    """The disk had to make room for others, while the conversation was still in memory."""
    store = bench.store()
    await _turn(store, "a")
    await bench.database.run(lambda c: c.execute("DELETE FROM conversations").rowcount)
    await _turn(store, "b")
    assert await _turn(bench.store(), "c") == ["a", "A", "b", "B", "c"]


async def test_f05_turns_the_disk_refused_are_stored_with_the_next_one(bench: Bench) -> None:
    store = bench.store()
    await _turn(store, "a")
    await bench.disk(is_full=True)
    long = "b" * 100_000
    await _turn(store, long)
    assert await _turn(store, "c") == ["a", "A", long, long.upper(), "c"], "memory has them"
    await bench.disk(is_full=False)
    await _turn(store, "d")
    assert (await _turn(bench.store(), "e"))[2:] == [long, long.upper(), "c", "C", "d", "D", "e"]


async def test_f05_memory_keeps_what_the_disk_refused_and_takes_no_more_than_it_can(bench: Bench) -> None:
    store = bench.store(Sessions(max_sessions=2))
    await bench.disk(is_full=True)
    long = "x" * 100_000
    await _turn(store, long, "one")
    await _turn(store, long, "two")
    with pytest.raises(StateUnavailableError):
        await _turn(store, "x", "three")
    assert len(await _turn(store, "more", "one")) == 3
    await bench.disk(is_full=False)
    await _turn(store, "more", "one")
    assert await _turn(store, "x", "three") == ["x"]


async def test_f05_a_conversation_that_cannot_be_read_is_not_begun_anew(bench: Bench) -> None:
    await _turn(bench.store(), "a")
    await bench.database.run(lambda c: c.execute("UPDATE turns SET messages = x'ff'").rowcount)
    store = bench.store()
    for _ in range(2):
        with pytest.raises(StateUnavailableError):
            await _turn(store, "b")


async def test_f05_memory_is_bounded_in_bytes_and_number(bench: Bench) -> None:
    store = bench.store(Sessions(cache_bytes=250))
    for name in "abc":
        await _turn(store, "x" * 50, name)
    assert len(store) == 2
    assert len(await _turn(store, "y", "a")) == 3, "the disk has all of it"
    store = bench.store(Sessions(max_sessions=2))
    for name in "abc":
        await _turn(store, "x", name)
    assert len(store) == 2


async def test_f05_a_session_unused_for_long_begins_anew_in_memory_and_on_the_disk(bench: Bench) -> None:
    limits = Sessions(ttl_s=10.0)
    store = bench.store(limits)
    await _turn(store, "a")
    bench.clock.time += 10.0
    assert await _turn(store, "b") == ["a", "A", "b"]
    bench.clock.time += 10.1
    assert await _turn(store, "c") == ["c"]
    assert await _turn(bench.store(limits), "d") == ["c", "C", "d"]


async def test_f05_a_session_in_use_is_not_forgotten_under_its_user(bench: Bench) -> None:
    store = bench.store(Sessions(max_sessions=1, cache_bytes=0))
    async with store.turn("t", "held") as session:
        await _turn(store, "x", "other")
        waiting = asyncio.create_task(_turn(store, "second", "held"))
        await asyncio.sleep(0)
        store.answered(session, _raw("first"), None, "e")
    assert await waiting == ["first", "second"]


async def test_f05_tenants_do_not_share_sessions(bench: Bench) -> None:
    limits = Sessions()
    kept = bench.conversations(limits)
    await _turn(bench.store(), "a")
    assert await kept.load(SessionKey("other", "s"), bench.clock.now()) is None


@pytest.mark.parametrize("name", ["x" * 256, "caf\udce9"])
async def test_f05_an_id_that_cannot_be_one_is_named(bench: Bench, name: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await _turn(bench.store(), "a", name)
    assert raised.value.violations[0].field == "session_id"
