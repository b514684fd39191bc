"""The shell around the gate: whatever callers do, and whenever, every place is given back (issue 5, items 6 and 7)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from analytics.records import RequestRecord
from routing.actions import Finished
from routing.model import Endpoint, RouteRequest
from routing.outcomes import Outcome
from service.completion import Completion, Served
from service.errors import OverloadedError, RequestTimeoutError, ServiceError, TenantLimitError
from service.fair import FairServing
from service.providers.base import Chunk, Operation
from service.serving import Event
from service.tenancy.fair_queue import Criticality, Share
from service.tenancy.gate import Bounds, Gate, Load
from service.tenancy.limiter import GradientLimiter, LimiterPolicy

SHARES = {
    "a": Share(),
    "b": Share(2, Criticality.CRITICAL),
    "c": Share(1, Criticality.SHEDDABLE),
}


@dataclass
class _Clock:
    time: float = 1000.0

    def now(self) -> float:
        return self.time


@dataclass
class _Inner:
    """Executes until it is let go; `seen` are the completions that got through."""

    go: asyncio.Event = field(default_factory=asyncio.Event)
    seen: list[Completion] = field(default_factory=list)
    at_once: int = 0
    most: int = 0

    async def complete(self, completion: Completion) -> Served:
        self.seen.append(completion)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        return cast("Served", SimpleNamespace())

    async def stream(self, completion: Completion) -> AsyncGenerator[Event, None]:
        await self.complete(completion)
        yield Chunk(b"{}")
        yield Chunk(b"{}")


class _Bench:
    def __init__(self, limit: int = 1, *, least: int | None = None, bounds: Bounds = Bounds(8, 8)) -> None:  # noqa: B008  # frozen
        self.clock, self.inner = _Clock(), _Inner()
        self.records: list[RequestRecord] = []
        limits = LimiterPolicy(least=least or limit, most=limit)
        self.gate = Gate(SHARES, bounds, GradientLimiter(limits, 0.0))
        record = cast("Any", self.records.append)
        self.fair = FairServing(self.inner, self.gate, self.clock, record, "r", max_wait_s=5.0)

    def ask(self, tenant: str = "a", timeout_s: float | None = None) -> "asyncio.Task[Served]":
        return asyncio.create_task(self.fair.complete(_completion(tenant, timeout_s)))

    async def turn(self) -> None:
        """Let everything that can run do so."""
        for _ in range(5):
            await asyncio.sleep(0)


def _completion(tenant: str, timeout_s: float | None = None) -> Completion:
    fields = {"messages": msgspec.Raw(b'[{"role":"user","content":"hello"}]')}
    return Completion(Operation.CHAT, fields, RouteRequest("m", tenant=tenant), "r", "test", timeout_s=timeout_s)


async def test_time_in_the_queue_is_taken_from_the_deadline() -> None:
    bench = _Bench()
    first, second = bench.ask(timeout_s=10), bench.ask(timeout_s=10)
    await bench.turn()
    bench.clock.time += 4
    bench.inner.go.set()
    await asyncio.gather(first, second)
    assert [completion.timeout_s for completion in bench.inner.seen] == [10, 6]


async def test_a_deadline_that_passed_in_the_queue_sends_nothing() -> None:
    bench = _Bench()
    first, second = bench.ask(), bench.ask(timeout_s=3)
    await bench.turn()
    bench.clock.time += 4
    bench.inner.go.set()
    await first
    with pytest.raises(RequestTimeoutError, match="4 s in the queue"):
        await second
    assert len(bench.inner.seen) == 1
    assert [record.status for record in bench.records] == ["DEADLINE_EXCEEDED"]
    assert bench.gate.load == Load(0, 0, 1)


async def test_who_leaves_in_the_moment_of_his_turn_gives_the_place_to_the_next() -> None:
    bench = _Bench()
    first, leaves, stays = bench.ask(), bench.ask(), bench.ask()
    await bench.turn()
    first.cancel()
    await asyncio.sleep(0)
    leaves.cancel()
    await bench.turn()
    assert bench.gate.load == Load(1, 0, 1)
    assert len(bench.inner.seen) == 2
    bench.inner.go.set()
    await stays
    assert bench.gate.load == Load(0, 0, 1)


async def test_who_leaves_in_the_moment_he_is_turned_away_takes_nothing_with_him() -> None:
    bench = _Bench(bounds=Bounds(1, 1))
    first, leaves = bench.ask("a"), bench.ask("c")
    await bench.turn()
    critical = bench.ask("b")
    leaves.cancel()
    await bench.turn()
    assert bench.gate.load == Load(1, 1, 1)
    bench.inner.go.set()
    await asyncio.gather(first, critical)
    assert bench.gate.load == Load(0, 0, 1)


async def test_a_stream_that_is_left_gives_its_place_back() -> None:
    bench = _Bench()
    bench.inner.go.set()
    async with aclosing(bench.fair.stream(_completion("a"))) as items:
        await anext(items)
        assert bench.gate.load.in_flight == 1
    assert bench.gate.load.in_flight == 0


async def test_an_error_gives_the_place_back() -> None:
    bench = _Bench()

    async def fails(completion: Completion) -> Served:
        raise ServiceError("no")

    bench.inner.complete = fails  # type: ignore[method-assign]
    for _ in range(3):
        with pytest.raises(ServiceError, match="no"):
            await bench.fair.complete(_completion("a"))
    assert bench.gate.load.in_flight == 0


async def test_closing_tells_all_who_wait_and_lets_those_in_finish() -> None:
    bench = _Bench()
    first, waiting = bench.ask(), [bench.ask(), bench.ask("b")]
    await bench.turn()
    bench.fair.close()
    for task in waiting:
        with pytest.raises(OverloadedError, match="is stopping") as raised:
            await task
        assert raised.value.reason == "SHUTTING_DOWN"
    bench.inner.go.set()
    await first


async def test_a_limit_that_rises_lets_in_who_waits_though_nobody_leaves() -> None:
    bench = _Bench(limit=16, least=1)
    endpoint, now = Endpoint("e", "p", "r", "z", "m", "m", 0, frozenset()), 0.0

    async def answers(ttft_s: float) -> None:
        """Half a second of answers that take so long."""
        nonlocal now
        for _ in range(50):
            now += 0.01
            bench.fair.finished(endpoint, Finished("e", "x", Outcome.OK, ttft_s=ttft_s), now)
        await bench.turn()

    await answers(0.1)
    tasks = [bench.ask() for _ in range(17)]
    await bench.turn()
    while bench.gate.load.limit > 10:
        await answers(1.0)
        assert now < 100, "the limit does not fall"
    tasks[0].cancel()
    await bench.turn()
    assert bench.gate.load.queued == 1, "fifteen are in, and the limit is below that"
    while bench.gate.load.queued:
        await answers(0.1)
        assert now < 200, "the limit does not rise"
    assert len(bench.inner.seen) == 17
    bench.inner.go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert bench.gate.load.in_flight == 0


@pytest.mark.parametrize("seed", range(20))
async def test_in_a_storm_of_callers_who_come_and_leave_no_place_is_lost(seed: int) -> None:
    """Callers of three classes come, leave at any moment, and are served, over a tiny queue."""
    rng, bench = Random(seed), _Bench(limit=3, bounds=Bounds(5, 3))
    tasks: list[asyncio.Task[Served]] = []
    for _ in range(300):
        what = rng.random()
        if what < 0.6:
            tasks.append(bench.ask(rng.choice("abc"), rng.choice([None, 4.0])))
        elif what < 0.85 and tasks:
            rng.choice(tasks).cancel()
        else:
            bench.inner.go.set()
            await asyncio.sleep(0)
            bench.inner.go.clear()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
        bench.clock.time += rng.random() * 0.01
        load = bench.gate.load
        assert load.in_flight <= 3
        assert load.queued <= 5
    bench.inner.go.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    allowed = (asyncio.CancelledError, OverloadedError, TenantLimitError, RequestTimeoutError)
    assert all(isinstance(end, (SimpleNamespace, *allowed)) for end in ends)
    assert bench.gate.load == Load(0, 0, 3)
    assert bench.inner.most <= 3
