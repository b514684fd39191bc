"""A reader that stops: the provider is made to wait, memory stays where it is, and nothing is lost when it goes on."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import DONE, STREAM_HEAD, Upstream, event, scripted
from tests.service_under_test import GPT4, Service, stream_request
from tests.wire_server import Exchange

BODY: dict[str, Any] = {"model": GPT4, "messages": [{"role": "user", "content": "go on and on"}], "stream": True}
EVENT_BYTES, EVENTS = 16 * 2**10, 4096
MOST_HELD_BYTES = 24 * 2**20
"""What sockets of three processes' worth of kernel buffers may hold, of 64 MiB in all."""


class Torrent:
    """A script that streams as fast as it is let, and counts what has left."""

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for _ in range(EVENTS):
            await exchange.send(event("x" * EVENT_BYTES))
            self.sent += 1
        await exchange.send(event(finish="stop"), DONE)


async def _stands_still(service: Service, torrent: Torrent, second: Upstream) -> None:
    """Return when the provider has been held back while others were served a hundred times."""
    while True:
        sent = torrent.sent
        for _ in range(100):
            await service.complete(preferred_provider="second")
        if sent and sent == torrent.sent:
            break
    assert second.open == 0


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_l14_a_reader_that_stops_holds_its_provider_back(
    providers: ProviderFleet, tmp_path: Path, edge: str
) -> None:
    async with scripted(providers, tmp_path, "first", "second") as (service, upstreams):
        torrent = upstreams["first"].script = Torrent()
        if edge == "grpc":
            call = service.stub.StreamComplete(stream_request())
            await call.read()
        else:
            response = await service.http.post(f"{service.url}/v1/chat/completions", json=BODY)
            await response.content.read(1)
        await _stands_still(service, torrent, upstreams["second"])
        assert torrent.sent * EVENT_BYTES < MOST_HELD_BYTES

        if edge == "grpc":
            received = 1
            message: Any = None
            while (message := await call.read()) is not grpc.aio.EOF:
                received += any(len(delta.text) == EVENT_BYTES for delta in message.chunk.deltas)
            assert received == EVENTS
        else:
            text = await response.content.read()
            assert text.count(b"x" * EVENT_BYTES) == EVENTS
            assert text.endswith(b"data: [DONE]\n\n")
        await upstreams["first"].until_open(0)


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_f11_a_reader_that_stopped_and_leaves_frees_its_provider(
    providers: ProviderFleet, tmp_path: Path, edge: str
) -> None:
    async with scripted(providers, tmp_path, "first", "second") as (service, upstreams):
        torrent = upstreams["first"].script = Torrent()
        if edge == "grpc":
            call = service.stub.StreamComplete(stream_request())
            await call.read()
            await _stands_still(service, torrent, upstreams["second"])
            call.cancel()
        else:
            response = await service.http.post(f"{service.url}/v1/chat/completions", json=BODY)
            await response.content.read(1)
            await _stands_still(service, torrent, upstreams["second"])
            response.close()
        await upstreams["first"].until_open(0)
        rows = await service.history("SELECT outcome FROM attempts WHERE provider = 'first'")
    assert rows == [("cancelled",)]
