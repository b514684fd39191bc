"""Overload over real sockets (issue 5, items 6 and 7; L-03, L-09, L-10): queues, shares, and what is told to whom.

The rule of this file: no assertion on elapsed time alone. Waits are compared with each other in the same run, or
counted in requests.
"""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import openai
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from service.tenancy.keys import KEY_BYTES, SALT_BYTES, hash_of, new_key
from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import Upstream, answer, scripted, settled
from tests.service_under_test import (
    DEADLINE_S,
    GPT4,
    Client,
    Service,
    as_process,
    complete_request,
    config_for,
    details,
    read_history,
    stream_request,
    until,
    write_config,
)
from tests.wire_server import Exchange

NAMES = ("loud", "quiet", "calm")
KEYS = {name: new_key(bytes([number] * KEY_BYTES)) for number, name in enumerate(NAMES, 1)}
HELLO: Any = [{"role": "user", "content": "hello"}]


def _tenants(**fields: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "api_keys": [hash_of(key, bytes(SALT_BYTES))], **fields.get(name, {})}
        for name, key in KEYS.items()
    ]


def _overload(concurrent: int, **fields: Any) -> dict[str, Any]:
    return {"least_concurrent": concurrent, "most_concurrent": concurrent, **fields}


async def _complete(service: Client, tenant: str = "", timeout_s: float = DEADLINE_S) -> Any:
    metadata = (("authorization", f"Bearer {KEYS[tenant]}"),) if tenant else ()
    return await service.stub.Complete(complete_request(), timeout=timeout_s, metadata=metadata)


async def _reason(asked: "asyncio.Task[Any]") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asked
    return raised.value.code(), details(raised.value)[ErrorInfo].reason


@dataclass
class _Held:
    """A service that lets so many requests through at once, all of which wait until they are let go."""

    service: Service
    upstream: Upstream
    go: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: "list[asyncio.Task[Any]]" = field(default_factory=list)

    def ask(self, tenant: str = "", timeout_s: float = DEADLINE_S) -> "asyncio.Task[Any]":
        task = asyncio.create_task(_complete(self.service, tenant, timeout_s))
        self.tasks.append(task)
        return task

    async def queued(self, count: int) -> None:
        """Wait until so many requests wait for their turn."""

        async def holds() -> bool:
            async with self.service.http.get(f"{self.service.url}/metrics") as response:
                return f"routecast_queued_requests {float(count)}" in await response.text()

        await until(holds)


@asynccontextmanager
async def _held(providers: ProviderFleet, directory: Path, **sections: Any) -> AsyncIterator[_Held]:
    async with scripted(providers, directory, "first", **sections) as (service, upstreams):
        held = _Held(service, upstreams["first"])

        async def waits(exchange: Exchange) -> None:
            await held.go.wait()
            await answer(exchange)

        held.upstream.script = waits
        yield held
        held.go.set()
        await settled(held.tasks)


async def test_requests_beyond_the_limit_wait_and_are_served(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _held(providers, tmp_path, overload=_overload(2)) as held:
        tasks = [held.ask() for _ in range(5)]
        await held.queued(3)
        assert len(held.upstream.bodies) == 2
        held.go.set()
        for reply in await asyncio.gather(*tasks):
            assert reply.choices[0].message.text == "well"
        assert len(held.upstream.bodies) == 5


async def test_a_stream_waits_its_turn_and_gives_its_place_back(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _held(providers, tmp_path, overload=_overload(1)) as held:
        held.ask()
        await held.upstream.until_asked(1)
        call = held.service.stub.StreamComplete(stream_request(), timeout=DEADLINE_S)
        await held.queued(1)
        assert len(held.upstream.bodies) == 1
        held.go.set()
        assert [item async for item in call][-1].HasField("report")
        assert (await _complete(held.service)).choices[0].message.text == "well"


async def test_who_leaves_the_queue_takes_no_place(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _held(providers, tmp_path, overload=_overload(1)) as held:
        held.ask()
        await held.upstream.until_asked(1)
        leaving = held.ask()
        await held.queued(1)
        leaving.cancel()
        await held.queued(0)
        stays = held.ask()
        await held.queued(1)
        held.go.set()
        await stays
        assert len(held.upstream.bodies) == 2
        rows = await held.service.history("SELECT status, attempts, count(*) FROM requests GROUP BY ALL ORDER BY ALL")
    assert rows == [("CANCELLED", 0, 1), ("ok", 1, 2)]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """L-03: UNAVAILABLE with RetryInfo, 503 with retry-after; nothing was sent to a provider, and SDKs may retry."""
    async with _held(providers, tmp_path, overload=_overload(1, most_queued=2)) as held:
        for _ in range(3):
            held.ask()
        await held.queued(2)
        with pytest.raises(openai.InternalServerError) as raised:
            await held.service.sdk.chat.completions.create(model=GPT4, messages=HELLO)
        assert raised.value.status_code == 503
        assert "retry-after" in raised.value.response.headers
        assert "x-should-retry" not in raised.value.response.headers
        held.go.set()
        await asyncio.gather(*held.tasks)
        assert len(held.upstream.bodies) == 3


async def test_a_tenants_full_line_is_its_own(providers: ProviderFleet, tmp_path: Path) -> None:
    overload = _overload(1, most_queued_per_tenant=2)
    async with _held(providers, tmp_path, overload=overload, tenants=_tenants()) as held:
        held.ask("loud")
        await held.upstream.until_asked(1)
        for _ in range(2):
            held.ask("loud")
        await held.queued(2)
        refused = held.ask("loud")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await refused
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = details(raised.value)
        assert found[ErrorInfo].reason == "TENANT_QUEUE_FULL"
        assert found[RetryInfo].retry_delay.ToMicroseconds() > 0
        quiet = held.ask("quiet")
        await held.queued(3)
        held.go.set()
        await quiet


async def test_the_lowest_class_makes_room_for_a_higher(providers: ProviderFleet, tmp_path: Path) -> None:
    tenants = _tenants(loud={"criticality": "sheddable"}, quiet={"criticality": "critical"})
    async with _held(providers, tmp_path, overload=_overload(1, most_queued=2), tenants=tenants) as held:
        held.ask("loud")
        await held.upstream.until_asked(1)
        first, newest = held.ask("loud"), None
        await held.queued(1)
        newest = held.ask("loud")
        await held.queued(2)
        critical = held.ask("quiet")
        assert await _reason(newest) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert await _reason(held.ask("loud")) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        held.go.set()
        await asyncio.gather(first, critical)


async def test_a_request_that_cannot_make_its_deadline_is_refused_before_it_waits(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Once it is known how long answers take, a deadline that is shorter is told at once: the caller's own clock never
    runs out, for its error would be DEADLINE_EXCEEDED.
    """
    async with scripted(providers, tmp_path, "first", overload=_overload(1)) as (service, upstreams):

        async def slowly(exchange: Exchange) -> None:
            await asyncio.sleep(0.5)
            await answer(exchange)

        upstreams["first"].script = slowly
        await _complete(service)
        under_way = asyncio.create_task(_complete(service))
        await upstreams["first"].until_asked(2)
        hasty = asyncio.create_task(_complete(service, timeout_s=0.3))
        assert await _reason(hasty) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        assert not under_way.done()
        patient = asyncio.create_task(_complete(service))
        await asyncio.gather(under_way, patient)
        assert len(upstreams["first"].bodies) == 3


async def test_who_has_waited_too_long_is_told_so(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _held(providers, tmp_path, overload=_overload(1, max_wait_s=0.2)) as held:
        held.ask()
        await held.upstream.until_asked(1)
        assert await _reason(held.ask()) == (grpc.StatusCode.UNAVAILABLE, "OVERLOADED")
        held.go.set()


async def test_on_sigterm_those_who_wait_are_told_and_those_under_way_finish(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """The error is clear and comes at once, so that another replica serves them; exit code 0, all on record."""
    upstream, go = Upstream(), asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        await go.wait()
        await answer(exchange)

    upstream.script = waits
    async with upstream.server:
        tree = config_for(providers, tmp_path / "data", overload=_overload(1), upstream={"prewarm": 0}) | {
            "providers": [{"name": "first", "base_url": upstream.server.url}],
            "models": [{"id": GPT4, "endpoints": [{"provider": "first", "provider_model": "m"}]}],
        }
        async with as_process(write_config(tmp_path / "routecast.yaml", tree)) as service:
            under_way = asyncio.create_task(_complete(service))
            await upstream.until_asked(1)
            waiting = [asyncio.create_task(_complete(service)) for _ in range(3)]
            held = _Held(service, upstream)  # type: ignore[arg-type]  # it has what is used of it
            await held.queued(3)
            ending = asyncio.create_task(service.end(signal.SIGTERM))
            for task in waiting:
                assert await _reason(task) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
            assert not under_way.done()
            go.set()
            assert (await under_way).choices[0].message.text == "well"
            assert await ending == 0
        rows = read_history(tmp_path / "data", "SELECT status, count(*) FROM requests GROUP BY ALL ORDER BY ALL")
    assert rows == [("SHUTTING_DOWN", 3), ("ok", 1)]


async def test_l10_a_tenant_with_80_percent_of_the_load_leaves_the_others_alone(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """An upstream that takes 100 ms, four at a time. Two tenants ask one at a time; then the same beside one that has
    forty requests under way at all times, far more than can be served. Judged within the run: the others have no
    error, and wait for one place of four to come free; the loud one waits in its own line.
    """
    overload = _overload(4, most_queued=1000, most_queued_per_tenant=1000, max_wait_s=20)
    async with scripted(providers, tmp_path, "first", overload=overload, tenants=_tenants()) as (service, upstreams):

        async def takes_a_while(exchange: Exchange) -> None:
            await asyncio.sleep(0.1)
            await answer(exchange)

        upstreams["first"].script = takes_a_while

        async def latencies(tenant: str, count: int) -> list[float]:
            spent = []
            for _ in range(count):
                began = time.monotonic()
                await _complete(service, tenant)
                spent.append(time.monotonic() - began)
            return spent

        alone = await asyncio.gather(*(latencies(name, 15) for name in ("quiet", "calm")))
        stop = asyncio.Event()
        loud: list[float] = []

        async def floods() -> None:
            while not stop.is_set():
                loud.extend(await latencies("loud", 1))

        flood = [asyncio.create_task(floods()) for _ in range(40)]
        await upstreams["first"].until_open(4)
        beside = await asyncio.gather(*(latencies(name, 15) for name in ("quiet", "calm")))
        stop.set()
        await asyncio.gather(*flood)
        for before, during in zip(alone, beside, strict=True):
            assert len(during) == len(before), "no errors"
            assert median(during) <= 2.5 * median(before)
        assert median(loud) >= 4 * max(median(during) for during in beside), "the loud one waits in its own line"


async def test_l09_bursts_are_bounded_and_over_when_they_end(providers: ProviderFleet, tmp_path: Path) -> None:
    """Four, twelve and forty at once over a limit of four with eight places to wait: all are answered or told, and the
    next request is served as if nothing had been.
    """
    overload = _overload(4, most_queued=8)
    async with scripted(providers, tmp_path, "first", overload=overload) as (service, upstreams):
        most = 0

        async def counts(exchange: Exchange) -> None:
            nonlocal most
            most = max(most, upstreams["first"].open)
            await asyncio.sleep(0.005)
            await answer(exchange)

        upstreams["first"].script = counts
        for size in (4, 12, 40):
            asked = len(upstreams["first"].bodies)
            tasks = [asyncio.create_task(_complete(service)) for _ in range(size)]
            await settled(tasks)
            failed = [task for task in tasks if task.exception() is not None]
            for task in failed:
                assert (await _reason(task))[1] == "OVERLOADED"
            assert len(upstreams["first"].bodies) - asked == size - len(failed) >= min(size, 12)
            assert (await _complete(service)).choices[0].message.text == "well"
        assert most <= 4
