"""F-12: connections are there before requests are, over real sockets."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.httpx_transport import HttpxTransport
from service.providers.transport import Timeouts, Transport, UpstreamRequest
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import QUICK_RETURN, Service, in_process, until
from tests.wire_server import DEADLINE_S, Exchange, WireServer

PATIENT = Timeouts(DEADLINE_S, DEADLINE_S, DEADLINE_S)
TLS = ssl.create_default_context()


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with AiohttpTransport(TLS) as made:
        yield made


async def _hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


async def _ask(transport: Transport, url: str) -> bytes:
    response = await transport.open(UpstreamRequest("POST", url, (), b"{}", PATIENT))
    return await response.read(100)


async def test_a_request_finds_a_connection_that_waits_for_it(transport: Transport) -> None:
    async with WireServer(_hello) as server:
        await transport.prewarm(f"{server.url}/v1", 3, DEADLINE_S)
        assert server.connections == 3
        answers = await asyncio.gather(*(_ask(transport, f"{server.url}/v1/x") for _ in range(3)))
        assert answers == [b"hello"] * 3
        assert server.connections == 3


async def test_warm_connections_are_kept_not_multiplied(transport: Transport) -> None:
    async with WireServer(_hello) as server:
        for _ in range(3):
            await transport.prewarm(f"{server.url}/v1", 2, DEADLINE_S)
        assert server.connections == 2


@pytest.mark.parametrize(("make", "connections"), [(AiohttpTransport, 1), (HttpxTransport, 0)])
async def test_nothing_is_sent(make: type[AiohttpTransport] | type[HttpxTransport], connections: int) -> None:
    """httpx cannot connect without a request, so it stays cold."""
    async with WireServer(_hello) as server, make(TLS) as transport:
        await transport.prewarm(f"{server.url}/v1", 1, DEADLINE_S)
        assert (server.connections, server.exchanges) == (connections, [])


async def test_a_host_that_refuses_is_no_error(transport: Transport) -> None:
    async with WireServer(_hello) as server:
        url = server.url
    await transport.prewarm(url, 2, DEADLINE_S)


@pytest.mark.parametrize("make", [AiohttpTransport, HttpxTransport])
async def test_connections_are_bounded_and_a_request_beyond_them_waits(
    make: type[AiohttpTransport] | type[HttpxTransport],
) -> None:
    """A pool that is full is our own doing: the request waits for a place, and the provider is not blamed."""
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        begun.release()
        await go_on.wait()
        await exchange.respond(b"hello")

    async with WireServer(script) as server, make(TLS, max_connections=2) as transport:
        asking = asyncio.gather(*(_ask(transport, server.url) for _ in range(5)))
        for _ in range(2):
            await begun.acquire()
        assert (server.connections, len(server.exchanges)) == (2, 2)
        go_on.set()
        assert await asking == [b"hello"] * 5
        assert server.connections == 2


async def test_f12_the_service_is_warm_at_start_and_when_a_provider_returns(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """The secondary has a connection although no request ever went there; so has the primary before it gets traffic."""
    policy = {"failback": QUICK_RETURN, "reflex": {"ejection_s": 0.2, "silence_s": 0.01}}
    async with in_process(providers, tmp_path, policy=policy, upstream={"prewarm": 2}) as service:
        await until(lambda: _connected(providers, *providers.names))
        assert all(providers.stats(name).total == 0 for name in providers.names)

        await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
        assert (await service.complete()).routing.provider == "borealis"
        assert providers.stats("borealis").connections == 2, "it used one that was there"
        assert providers.stats("aurora").connections == 0
        await until(lambda: _has_left(service, "aurora"))
        await providers.clear()
        await until(lambda: _connected(providers, "aurora"))


async def _connected(providers: ProviderFleet, *names: str) -> bool:
    return all(providers.stats(name).connections >= 2 for name in names)


async def _has_left(service: Service, provider: str) -> bool:
    return (await service.states())[provider] not in ("ACTIVE", "UNKNOWN")
