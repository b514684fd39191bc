"""The state store: what was handed back is on the disk, who fails fails alone, and every bound holds (F-04, F-05)."""

import asyncio
import base64
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from service.clock import SteadyClock
from service.config import Config
from service.store import conversations, outbox, results
from service.store.conversations import Conversations, SessionKey
from service.store.database import Database
from service.store.errors import SealError, StoreError, StoreUnusableError
from service.store.outbox import Outbox
from service.store.results import Found, ResultKey, Results, State
from service.store.seal import Seal
from service.store.state import state_store

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS words (word TEXT NOT NULL)",
    *results.SCHEMA,
    *conversations.SCHEMA,
    *outbox.SCHEMA,
)
KEY, OTHER = ResultKey("t", "k"), ResultKey("other", "k")
SESSION = SessionKey("t", "s")
BODY = bytes(range(256)) * 8


def _insert(word: str | None) -> Callable[[sqlite3.Connection], None]:
    def job(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO words VALUES (?)", (word,))

    return job


def _pragma(text: str) -> Callable[[sqlite3.Connection], None]:
    def job(connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA {text}").fetchall()

    return job


def _words(path: Path) -> list[str]:
    """What another process would find."""
    connection = sqlite3.connect(path)
    try:
        return [word for (word,) in connection.execute("SELECT word FROM words ORDER BY rowid")]
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.sqlite"


@pytest.fixture
async def database(path: Path) -> AsyncIterator[Database]:
    store = Database(path, SCHEMA)
    await store.start()
    yield store
    await store.aclose()


async def test_a_job_that_returned_is_on_the_disk(database: Database, path: Path) -> None:
    await database.run(_insert("one"))
    assert _words(path) == ["one"]


async def test_what_callers_said_is_for_nobody_else_on_the_machine(database: Database, path: Path) -> None:
    await database.run(_insert("one"))
    files = [path.parent, *path.parent.iterdir()]
    assert {file.suffix for file in files} >= {".sqlite", ".sqlite-wal", ".lock"}
    assert [file.name for file in files if file.lstat().st_mode & 0o077] == []


async def test_jobs_that_wait_together_share_one_commit(database: Database, path: Path) -> None:
    said: list[str] = []
    gate = threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        gate.wait()
        connection.set_trace_callback(said.append)

    first = asyncio.create_task(database.run(hold))
    await asyncio.sleep(0)
    jobs = [asyncio.create_task(database.run(_insert(str(n)))) for n in range(100)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *jobs)
    assert said.count("COMMIT") <= 2, "one for whoever was first, one for all who waited"
    assert _words(path) == [str(n) for n in range(100)]


async def test_who_fails_fails_alone_and_leaves_nothing(database: Database, path: Path) -> None:
    gate = threading.Event()
    held = asyncio.create_task(database.run(lambda _: gate.wait()))
    await asyncio.sleep(0)

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO words VALUES ('half')")
        raise KeyError("a mistake of its own")

    jobs = [asyncio.create_task(database.run(job)) for job in (_insert("a"), _insert(None), half, _insert("b"))]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(held, *jobs, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes[1:]] == [type(None), StoreError, KeyError, type(None)]
    assert _words(path) == ["a", "b"]


async def test_a_full_disk_refuses_and_takes_the_same_job_later(database: Database, path: Path) -> None:
    await database.run(_pragma("max_page_count = 1"))  # SQLite's own way to be out of space
    with pytest.raises(StoreError, match="full"):
        await database.run(_insert("x" * 100_000))
    await database.run(_pragma("max_page_count = 100000"))
    await database.run(_insert("later"))
    assert _words(path) == ["later"]


async def test_a_job_is_done_though_its_caller_left(database: Database, path: Path) -> None:
    gate = threading.Event()
    held = asyncio.create_task(database.run(lambda _: gate.wait()))
    await asyncio.sleep(0)
    left = asyncio.create_task(database.run(_insert("done")))
    await asyncio.sleep(0)
    left.cancel()
    gate.set()
    await held
    await database.run(lambda _: None)
    assert left.cancelled()
    assert _words(path) == ["done"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(b"no database at all" * 100), "damaged"),
        (lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 99"), "expected version 1, found 99"),
        (lambda path: path.mkdir(), "unable to open"),
    ],
)
async def test_a_file_that_cannot_be_used_is_told_at_the_start(
    path: Path, spoil: Callable[[Path], object], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    spoil(path)
    store = Database(path, SCHEMA)
    if told == "unable to open":  # SQLite says the same of a full disk, which may pass
        await store.start()
        assert told in caplog.text
    else:
        with pytest.raises(StoreUnusableError, match=told):
            await store.start()
    await store.aclose()


async def test_a_closed_store_refuses_and_has_done_what_it_was_given(database: Database, path: Path) -> None:
    last = asyncio.create_task(database.run(_insert("last")))
    await asyncio.sleep(0)
    await database.aclose()
    await last
    assert _words(path) == ["last"]
    with pytest.raises(StoreError, match="closed"):
        await database.run(_insert("too late"))


async def test_a_store_has_one_owner(database: Database, path: Path) -> None:
    second = Database(path, SCHEMA)
    with pytest.raises(StoreUnusableError, match="in use by another process"):
        await second.start()
    await second.aclose()
    await database.run(_insert("still ours"))


def test_a_sealed_value_opens_at_its_place_only() -> None:
    seal = Seal([b"1" * 32])
    sealed = seal.seal(BODY, "here")
    assert BODY not in sealed
    assert sealed != seal.seal(BODY, "here"), "a nonce is used once"
    assert seal.open(sealed, "here") == BODY
    spoiled = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for value, place in (
        (sealed, "there"),
        (spoiled, "here"),
        (sealed[:20], "here"),
        (b"", "here"),
        (b"\x02x", "here"),
    ):
        with pytest.raises(SealError):
            seal.open(value, place)


async def test_keys_without_the_means_to_use_them_are_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cipher comes with an extra; conversations are not written in clear because it is missing."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    key = base64.b64encode(b"k" * 32).decode()
    config = Config.model_validate(
        {
            "data_dir": tmp_path,
            "state": {"encryption_keys": [key]},
            "providers": [{"name": "p", "base_url": "http://127.0.0.1:1/v1"}],
            "models": [{"id": "m", "endpoints": [{"provider": "p", "provider_model": "m"}]}],
        }
    )
    with pytest.raises(StoreUnusableError, match=r"routecast\[encryption\]"):
        async with state_store(config, SteadyClock()):
            pass


def test_keys_may_be_exchanged_and_plain_values_stay_readable() -> None:
    old, new = b"1" * 32, b"2" * 32
    sealed = Seal([old]).seal(BODY, "here")
    assert Seal([new, old]).open(sealed, "here") == BODY
    with pytest.raises(SealError, match="encryption_keys"):
        Seal([new]).open(sealed, "here")
    with pytest.raises(SealError, match="encryption_keys"):
        Seal().open(sealed, "here")
    assert Seal([new]).open(Seal().seal(BODY, "here"), "here") == BODY


def _results(database: Database, max_bytes: int = 10**6) -> Results:
    return Results(database, Seal([b"k" * 32]), ttl_s=100.0, max_bytes=max_bytes)


async def test_f04_a_key_is_claimed_once_and_then_tells_what_became_of_it(database: Database) -> None:
    kept = _results(database)
    assert await kept.claim(KEY, b"print", "r1", 0.0) is None
    assert await kept.claim(KEY, b"another", "r2", 1.0) == Found(State.RUNNING, b"print", "r1", None)
    await kept.keep(KEY, BODY, 50.0)
    assert await kept.claim(KEY, b"print", "r3", 149.0) == Found(State.KEPT, b"print", "r1", BODY)
    assert await kept.claim(OTHER, b"print", "r4", 2.0) is None, "each tenant has its own keys"
    await kept.keep(OTHER, None, 2.0)
    assert await kept.claim(OTHER, b"print", "r5", 3.0) == Found(State.TOO_LARGE, b"print", "r4", None)


async def test_f04_a_key_is_free_when_released_and_when_its_time_is_over(database: Database) -> None:
    kept = _results(database)
    assert await kept.claim(KEY, b"one", "r1", 0.0) is None
    await kept.release(KEY)
    assert await kept.claim(KEY, b"two", "r2", 0.0) is None
    await kept.keep(KEY, BODY, 0.0)
    assert await kept.claim(KEY, b"three", "r3", 100.0) is None, "kept for 100 s"


async def test_f04_the_oldest_results_make_room_but_no_mark_does(database: Database) -> None:
    kept = _results(database, max_bytes=4000)
    keys = [ResultKey("t", str(n)) for n in range(40)]
    await kept.claim(KEY, b"", "running", 0.0)
    evicted = 0
    for key in keys:
        assert await kept.claim(key, b"", "r", 0.0) is None
        evicted += await kept.keep(key, BODY, 0.0)
    found = [await kept.claim(key, b"", "again", 1.0) for key in keys]
    there = [index for index, each in enumerate(found) if each is not None]
    assert there == list(range(evicted, 40)), "the newest"
    assert 2 <= len(there) < 40
    mark = await kept.claim(KEY, b"", "again", 1.0)
    assert mark is not None
    assert mark.state is State.RUNNING


async def test_f04_what_has_expired_is_removed(database: Database) -> None:
    kept = _results(database)
    await kept.claim(KEY, b"", "r", 0.0)
    await kept.keep(KEY, BODY, 0.0)
    await kept.claim(OTHER, b"", "r", 50.0)
    await kept.purge(101.0)
    left = await database.run(lambda c: c.execute("SELECT tenant FROM results").fetchall())
    assert left == [("other",)]
    assert await database.run(lambda c: c.execute("SELECT bytes FROM results_size").fetchone()[0]) > 0


def _messages(*texts: str) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode({"content": text})) for text in texts]


def _conversations(database: Database, max_number: int = 100) -> Conversations:
    return Conversations(database, Seal([b"k" * 32]), ttl_s=100.0, max_number=max_number, max_bytes=10**6)


async def _loaded(kept: Conversations, key: SessionKey, now: float) -> list[list[bytes]] | None:
    found = await kept.load(key, now)
    return None if found is None else [[bytes(message) for message in turn] for turn in found.turns]


async def test_f05_turns_are_kept_in_order_and_without_gaps(database: Database) -> None:
    kept = _conversations(database)
    turns = [_messages("a", "b"), _messages("c")]
    assert not await kept.append(SESSION, 1, turns[1], "e", 0.0, 10), "the turn before it is missing"
    assert await _loaded(kept, SESSION, 0.0) is None
    for number, turn in enumerate(turns):
        assert await kept.append(SESSION, number, turn, f"e{number}", float(number), 10)
    assert await _loaded(kept, SESSION, 1.0) == [[bytes(m) for m in turn] for turn in turns]
    found = await kept.load(SESSION, 1.0)
    assert found is not None
    assert (found.endpoint_id, found.used_at) == ("e1", 1.0)
    assert await kept.append(SESSION, 0, turns[1], "e", 2.0, 5), "a conversation that begins anew"
    assert await _loaded(kept, SESSION, 2.0) == [[bytes(m) for m in turns[1]]]


async def test_f05_an_unused_conversation_is_forgotten(database: Database) -> None:
    kept = _conversations(database)
    await kept.append(SESSION, 0, _messages("a"), "e", 0.0, 10)
    assert await kept.load(SESSION, 100.0) is not None
    assert await kept.load(SESSION, 100.1) is None
    await kept.purge(100.1)
    assert await database.run(lambda c: c.execute("SELECT count(*) FROM turns").fetchone()) == (0,)


async def test_f05_the_longest_unused_conversations_make_room(database: Database) -> None:
    kept = _conversations(database, max_number=2)
    for used_at, name in enumerate(("a", "b", "c")):
        await kept.append(SessionKey("t", name), 0, _messages(name), "e", float(used_at), 10)
    there = [name for name in "abc" if await kept.load(SessionKey("t", name), 3.0) is not None]
    assert there == ["b", "c"]


async def test_c05_the_outbox_repeats_a_shipment_until_it_was_delivered(database: Database) -> None:
    queue = Outbox(database)
    await queue.add([("1", b"one"), ("2", b"two"), ("3", b"three")])
    await queue.add([("3", b"three again"), ("4", b"four")])
    first = await queue.pack(2)
    assert first is not None
    assert (first.bodies, first.resumed) == ((b"one", b"two"), False)
    again = await queue.pack(100)
    assert again is not None
    assert (again.bodies, again.resumed) == ((b"one", b"two"), True), "what was begun is what is repeated"
    await queue.delivered(again)
    rest = await queue.pack(100)
    assert rest is not None
    assert (rest.bodies, rest.resumed) == ((b"three", b"four"), False)
    await queue.delivered(rest)
    assert await queue.pack(100) is None
