"""The gate of idempotency keys alone (F-04): what is executed, kept, released, refused; also when the disk refuses."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from analytics.records import RequestRecord
from routing.model import Endpoint, RouteRequest
from routing.outcomes import Outcome
from service.completion import Begun, Completion, Continued, Report, Served
from service.config import Idempotency
from service.errors import (
    AttemptReport,
    AttemptsExhaustedError,
    KeyReusedError,
    NotRepeatedError,
    ServiceError,
    StateUnavailableError,
    StreamBrokenError,
)
from service.idempotency import IdempotentServing
from service.providers.base import Chunk, Operation, Reply
from service.recording import Recording, RecordingError
from service.serving import Event
from service.store import results
from service.store.database import Database
from service.store.results import Results
from service.store.seal import Seal

ENDPOINT = Endpoint("p:m", "p", "r", "z", "m", "pm", 0, frozenset())
HEADERS = {"x-ratelimit-remaining": "3", "openai-version": "1"}
REPLY = Reply(201, b'{"big": 12345678901234567890, "f": 1.0}', HEADERS, 5, 7)


@dataclass
class Clock:
    time: float = 1000.0

    def now(self) -> float:
        return self.time


def _attempt(outcome: Outcome) -> AttemptReport:
    return AttemptReport(1, "d", "p:m", "p", "r", outcome, 500, "broke", 0.5)


def _report(request_id: str, outcome: Outcome = Outcome.OK) -> Report:
    return Report(request_id, ENDPOINT, (_attempt(outcome),), 5, 7, 0.01, "", 1000.0)


@dataclass
class Inner:
    """Serves from a script, and counts. `gate` holds an execution back; `fails` ends it."""

    executions: list[Completion] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    fails: ServiceError | None = None
    breaks: Exception | None = None
    chunks: list[Chunk] = field(default_factory=lambda: [Chunk(b"%d" % n, has_content=True) for n in range(5)])

    def __post_init__(self) -> None:
        self.gate.set()

    async def complete(self, completion: Completion) -> Served:
        self._begin(completion)
        await self.gate.wait()
        self._fail()
        return Served(REPLY, _report(completion.request_id))

    async def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        self._begin(completion)
        yield Begun(ENDPOINT, 1, "d", REPLY.headers)
        for chunk in self.chunks[:3]:
            yield chunk
        await self.gate.wait()
        self._fail()
        yield Continued(ENDPOINT, 2, "e")
        for chunk in self.chunks[3:]:
            yield chunk
        yield _report(completion.request_id)

    def _begin(self, completion: Completion) -> None:
        self.executions.append(completion)
        self.begun.set()

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails
        if self.breaks is not None:
            raise self.breaks


@dataclass
class Bench:
    """A gate over a scripted server and a real store. `gate()` makes another one, as a restart would."""

    inner: Inner
    database: Database
    results: Results
    clock: Clock
    records: list[Any] = field(default_factory=list)

    def gate(self) -> IdempotentServing:
        limits = Idempotency(max_result_bytes=100_000)
        return IdempotentServing(self.inner, self.results, limits, self.clock, self.records.append, "replica")

    async def refuse_writes(self) -> None:
        """From here on every write is an error of SQLite's own."""
        await self.database.run(lambda c: c.execute("PRAGMA query_only = 1").fetchall())

    async def execution(self) -> None:
        """Return when something is being executed."""
        async with asyncio.timeout(10):
            await self.inner.begun.wait()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = Database(tmp_path / "state.sqlite", results.SCHEMA)
    await database.start()
    kept = Results(database, Seal(), ttl_s=100.0, max_bytes=10**7)
    yield Bench(Inner(), database, kept, Clock())
    await database.aclose()


def _completion(key: str = "k", *, text: str = "hi", request_id: str = "r", **others: Any) -> Completion:
    fields = {"messages": msgspec.Raw(msgspec.json.encode([text])), "model": msgspec.Raw(b'"m"')}
    return Completion(Operation.CHAT, fields, RouteRequest("m"), request_id, "grpc", idempotency_key=key, **others)


async def _events(gate: IdempotentServing, completion: Completion) -> list[Event]:
    return [event async for event in gate.stream(completion)]


def _failure(outcome: Outcome) -> AttemptsExhaustedError:
    return AttemptsExhaustedError("failed", attempts=[_attempt(outcome)], retry_after_s=3.0)


async def test_f04_without_a_key_nothing_is_remembered(bench: Bench) -> None:
    gate = bench.gate()
    for _ in range(2):
        await gate.complete(_completion(""))
        await _events(gate, _completion("", stream=True))
    assert len(bench.inner.executions) == 4


@pytest.mark.parametrize("restart", [False, True])
async def test_f04_a_kept_answer_is_the_first_in_every_field(bench: Bench, *, restart: bool) -> None:
    gate = bench.gate()
    first = await gate.complete(_completion())
    second = await (bench.gate() if restart else gate).complete(_completion(request_id="r2"))
    assert first == Served(REPLY, _report("r"))
    assert second.report == replace(first.report, replayed=True)
    assert second.reply == replace(REPLY, headers={"openai-version": "1"}), "limits of then are not those of now"
    (record,) = bench.records
    assert isinstance(record, RequestRecord)
    assert (record.request_id, record.method, record.status) == ("r2", "replay", "ok")
    assert (record.attempts, record.cost_usd) == (0, None)


@pytest.mark.parametrize("restart", [False, True])
async def test_f04_a_kept_stream_is_the_first_item_by_item(bench: Bench, *, restart: bool) -> None:
    gate, completion = bench.gate(), _completion(stream=True)
    first = await _events(gate, completion)
    second = await _events(bench.gate() if restart else gate, completion)
    assert second[1:-1] == first[1:-1]
    assert any(isinstance(event, Continued) for event in second)
    begun, report = first[0], first[-1]
    assert isinstance(begun, Begun)
    assert isinstance(report, Report)
    assert second[0] == replace(begun, replayed=True, headers={"openai-version": "1"})
    assert second[-1] == replace(report, replayed=True)


async def test_f04_a_key_belongs_to_its_tenant(bench: Bench) -> None:
    gate = bench.gate()
    for tenant in ("a", "b"):
        await gate.complete(replace(_completion(), route=RouteRequest("m", tenant=tenant)))
    assert [c.route.tenant for c in bench.inner.executions] == ["a", "b"]


async def test_f04_a_key_is_free_after_its_time(bench: Bench) -> None:
    gate = bench.gate()
    await gate.complete(_completion())
    bench.clock.time += 100.0
    await gate.complete(_completion(text="something else"))
    assert len(bench.inner.executions) == 2


@pytest.mark.parametrize(
    "other",
    [
        _completion(text="other"),
        _completion(session_id="s"),
        _completion(query="api-version=2"),
        replace(_completion(), operation=Operation.EMBEDDINGS),
    ],
)
async def test_f04_another_request_under_the_key_is_refused(bench: Bench, other: Completion) -> None:
    gate = bench.gate()
    await gate.complete(_completion())
    with pytest.raises(KeyReusedError):
        await gate.complete(other)
    assert len(bench.inner.executions) == 1


async def test_f04_where_it_may_be_served_does_not_make_it_another_request(bench: Bench) -> None:
    gate = bench.gate()
    await gate.complete(_completion())
    other = replace(_completion(), route=RouteRequest("m", preferred_provider="q"), timeout_s=1.0, edge="http")
    assert (await gate.complete(other)).report.replayed


async def test_f04_a_wrong_body_does_not_disturb_the_right_one_beside_it(bench: Bench) -> None:
    """Both arrive before the disk has said which of them the key belongs to."""
    await bench.gate().complete(_completion())
    gate = bench.gate()
    wrong, right = await asyncio.gather(
        gate.complete(_completion(text="other")), gate.complete(_completion()), return_exceptions=True
    )
    assert isinstance(wrong, KeyReusedError)
    assert isinstance(right, Served)
    assert right.report.replayed


@pytest.mark.parametrize(
    ("outcome", "idempotent", "executions"),
    [
        (Outcome.CONNECT_ERROR, True, 2),
        (Outcome.CONNECT_ERROR, False, 2),
        (Outcome.RATE_LIMITED, False, 2),
        (Outcome.SERVER_ERROR, True, 2),
        (Outcome.SERVER_ERROR, False, 1),
        (Outcome.TIMEOUT, False, 1),
    ],
)
async def test_f04_a_failure_is_kept_only_where_repeating_may_do_harm(
    bench: Bench, outcome: Outcome, *, idempotent: bool, executions: int
) -> None:
    bench.inner.fails = _failure(outcome)
    failures = []
    for _ in range(2):
        with pytest.raises(AttemptsExhaustedError) as raised:
            await bench.gate().complete(_completion(idempotent=idempotent))
        failures.append((raised.value.message, raised.value.attempts))
    assert failures[0] == failures[1]
    assert len(bench.inner.executions) == executions
    if executions == 1:
        assert raised.value.retry_after_s is None, "waiting changes nothing"


async def test_f04_a_broken_stream_is_kept_with_what_was_sent(bench: Bench) -> None:
    bench.inner.fails = StreamBrokenError("broke", attempts=[_attempt(Outcome.STALLED)])
    for gate in (bench.gate(), bench.gate()):
        events = gate.stream(_completion(stream=True, idempotent=False))
        seen = [await anext(events) for _ in range(4)]
        assert [event.data for event in seen if isinstance(event, Chunk)] == [b"0", b"1", b"2"]
        with pytest.raises(StreamBrokenError):
            await anext(events)
    assert len(bench.inner.executions) == 1


async def test_f04_what_a_mistake_of_ours_cut_off_is_not_executed_again(bench: Bench) -> None:
    bench.inner.breaks = ZeroDivisionError()
    with pytest.raises(ServiceError, match="internal error"):
        await bench.gate().complete(_completion())
    bench.inner.breaks = None
    with pytest.raises(NotRepeatedError) as raised:
        await bench.gate().complete(_completion(request_id="r2"))
    assert raised.value.reason == "IDEMPOTENCY_OUTCOME_UNKNOWN"
    assert "'r'" in raised.value.message, "it names the request that may have been executed"
    assert len(bench.inner.executions) == 1


async def test_f04_draining_cuts_off_what_takes_too_long_and_its_key_stays_marked(bench: Bench) -> None:
    gate = bench.gate()
    bench.inner.gate.clear()
    lost = asyncio.create_task(gate.complete(_completion()))
    await bench.execution()
    lost.cancel()
    await gate.drain(0.0)
    with pytest.raises(NotRepeatedError):
        await bench.gate().complete(_completion())


async def test_f04_a_disk_that_refuses_joins_duplicates_all_the_same(bench: Bench) -> None:
    await bench.refuse_writes()
    gate = bench.gate()
    bench.inner.gate.clear()
    both = asyncio.gather(*(gate.complete(_completion()) for _ in range(2)))
    await bench.execution()
    bench.inner.gate.set()
    assert [served.report.replayed for served in await both] == [False, True]
    assert len(bench.inner.executions) == 1


async def test_f04_what_must_not_run_twice_does_not_run_without_its_mark(bench: Bench) -> None:
    await bench.refuse_writes()
    with pytest.raises(StateUnavailableError):
        await bench.gate().complete(_completion(idempotent=False))
    assert not bench.inner.executions


async def test_f04_an_answer_that_cannot_be_kept_is_given_and_not_executed_again(bench: Bench) -> None:
    gate = bench.gate()
    bench.inner.gate.clear()
    events = asyncio.create_task(_events(gate, _completion(stream=True)))
    await bench.execution()
    await bench.refuse_writes()
    bench.inner.gate.set()
    assert isinstance((await events)[-1], Report)


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode({"items": [("Gone", {})], "failure": None})])
def test_f04_a_recording_of_another_version_is_told(data: bytes) -> None:
    with pytest.raises(RecordingError):
        Recording.decode(data)
