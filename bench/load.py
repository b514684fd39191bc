"""What the profiles of load share: callers whose requests start at their own times, the providers behind them, and how
a run ends.

The rule of this file: the loop is open. A request is sent when it is due, whatever became of those before, and its
latency counts from then, so that a service that stalls cannot make its load wait with it.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from rich.console import Console
from routecast.v1 import chat_pb2, router_pb2, router_pb2_grpc, routing_pb2

from bench.serving import EMBEDDING_MODEL, MODEL, NAMES, config_for, served
from sim.provider_server import ProviderFleet
from sim.scenario import parse_scenario

_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was due and ended, "" or its error, whether that said when to come back, and how many
    attempts it took, as far as that was told.
    """

    sent: float
    ended: float
    error: str = ""
    has_hint: bool = False
    attempts: int = 0


class Callers:
    """Callers over both edges. Each method sends one request that was due at `due` and returns what came of it."""

    def __init__(
        self, stub: "router_pb2_grpc.RouterServiceAsyncStub", session: aiohttp.ClientSession, url: str
    ) -> None:
        self.stub = stub
        self._session = session
        self._url = url

    async def over_grpc(self, due: float, text: str = "hello", **options: Any) -> Asked:
        """Complete over gRPC; `options` are RoutingOptions."""
        loop = asyncio.get_running_loop()
        message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, text=text)
        request = router_pb2.CompleteRequest(
            chat=chat_pb2.ChatRequest(model=MODEL, messages=[message]), routing=routing_pb2.RoutingOptions(**options)
        )
        try:
            served = await self.stub.Complete(request, timeout=_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
            details = Status.FromString(packed).details if isinstance(packed, bytes) else ()
            has_hint = any(detail.Is(RetryInfo.DESCRIPTOR) for detail in details)
            return Asked(due, loop.time(), error.code().name, has_hint)
        return Asked(due, loop.time(), attempts=len(served.routing.attempts))

    async def over_http(self, due: float, text: str = "hello", **headers: str) -> Asked:
        """Complete over the OpenAI edge; underscores in the names of `headers` are hyphens."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._over_http(due, "POST", "/v1/chat/completions", json=body, headers=sent)

    async def embed(self, due: float) -> Asked:
        """Ask for an embedding over the OpenAI edge."""
        return await self._over_http(due, "POST", "/v1/embeddings", json={"model": EMBEDDING_MODEL, "input": "hello"})

    async def list_models(self, due: float) -> Asked:
        """Ask for the models over the OpenAI edge."""
        return await self._over_http(due, "GET", "/v1/models")

    async def _over_http(self, due: float, method: str, path: str, **parts: Any) -> Asked:
        loop = asyncio.get_running_loop()
        try:
            async with self._session.request(method, self._url + path, **parts) as response:
                await response.read()
                attempts = int(response.headers.get("x-routecast-attempts", "0"))
                if response.status == 200:
                    return Asked(due, loop.time(), attempts=attempts)
                return Asked(due, loop.time(), str(response.status), "retry-after" in response.headers, attempts)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Asked(due, loop.time(), type(error).__name__)


@asynccontextmanager
async def calling(ports: dict[str, int]) -> AsyncIterator[Callers]:
    """Callers of the service at these ports, within the block."""
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}"))
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=_TIMEOUT_S)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))
        yield Callers(router_pb2_grpc.RouterServiceStub(channel), session, f"http://127.0.0.1:{ports['http']}")


@asynccontextmanager
async def rig() -> AsyncIterator[tuple[ProviderFleet, int, Callers]]:
    """Providers, a service before them in a process of its own, and its callers; yields them, the service by its pid.

    Everything ends with the block, the service's data too. Of the requests that providers receive, one each is kept.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fleet = await stack.enter_async_context(ProviderFleet(parse_scenario(scenario()), keep=1))
        pid, ports = await stack.enter_async_context(served(config_for(fleet, folder)))
        yield fleet, pid, await stack.enter_async_context(calling(ports))


async def steadily(
    rate: float, going: Callable[[int], bool], ask: Callable[[int, float], Coroutine[Any, Any, None]]
) -> None:
    """Start `ask`, `rate` times a second, each with its number and the moment it was due, while `going` says so of the
    number; return when all have ended.
    """
    loop = asyncio.get_running_loop()
    begun, number = loop.time(), 0
    async with asyncio.TaskGroup() as group:
        while going(number):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
            group.create_task(ask(number, due))
            number += 1


def scenario(ttft_ms: float = 20, tokens_per_s: float = 2000) -> str:
    """Providers of the names that the service is configured with, each alone in its region."""
    provider = """
  - name: {name}
    region: {name}
    zone: a
    ttft_ms: {ttft_ms}
    tokens_per_s: {tokens_per_s}
    models:
      - {{id: openai/gpt-4, provider_model_id: m}}
      - {{id: openai/embedding, provider_model_id: e, kind: embeddings, dimensions: 256}}"""
    providers = "".join(provider.format(name=name, ttft_ms=ttft_ms, tokens_per_s=tokens_per_s) for name in NAMES)
    return f"name: load\nseed: 7\nduration_s: 3600\nproviders:{providers}\n"


def percentile(latencies_s: list[float], share: float) -> float:
    """The latency that `share` of the requests stayed within, in seconds; 0 without any."""
    ordered = sorted(latencies_s)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def verdict(console: Console, complaints: Sequence[str]) -> int:
    """Print what is not as it should be; return the exit code, 1 when there is anything."""
    for complaint in complaints:
        console.print(complaint, style="red")
    return int(bool(complaints))
