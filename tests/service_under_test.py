"""A whole routecast service over a fleet of simulated providers, for tests: in this process or as its own.

The rule of this file: only what callers and operators have is used (both edges, the configuration file, the history
on disk), so that a test of a promise breaks when the promise does. Nothing waits for time to pass: conditions are
asked until a deadline.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import openai
import yaml
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from routecast.v1 import chat_pb2, router_pb2, router_pb2_grpc, routing_pb2

from analytics.store import connect
from service.config_file import load
from service.main import Ports, running
from sim.provider_server import ProviderFleet

# A guard against what never ends, and no expectation: on a busy machine a process takes long to start.
DEADLINE_S = 60.0
GPT4, EMBED = "openai/gpt-4", "openai/text-embedding-3-small"
QUICK_RETURN = {"probe_interval_s": 0.1, "probe_successes": 2, "steps": [0.5], "max_failure_rate": 0.9, "step_s": 0.1}
SCENARIO = """
name: service
seed: 11
duration_s: 600
providers:
  - name: aurora
    region: eu-west
    zone: eu-west-a
    ttft_ms: 1
    ttft_sigma: 0
    tokens_per_s: 20000
    models:
      - {id: openai/gpt-4, provider_model_id: openai/gpt-4, input_per_million_usd: 30, output_per_million_usd: 60}
      - {id: openai/text-embedding-3-small, provider_model_id: embed, kind: embeddings, dimensions: 8}
  - name: borealis
    region: eu-west
    zone: eu-west-b
    ttft_ms: 1
    ttft_sigma: 0
    tokens_per_s: 20000
    models:
      - {id: openai/gpt-4, provider_model_id: gpt-4, input_per_million_usd: 20, output_per_million_usd: 40}
      - {id: openai/text-embedding-3-small, provider_model_id: embed, kind: embeddings, dimensions: 8}
  - name: cirrus
    region: us-east
    zone: us-east-a
    ttft_ms: 1
    ttft_sigma: 0
    tokens_per_s: 20000
    models: [{id: openai/gpt-4, provider_model_id: gpt-4-0613}]
"""

Tree = dict[str, Any]


def config_for(fleet: ProviderFleet, data_dir: Path, **sections: Any) -> Tree:
    """A configuration of every provider and model of the fleet, in the scenario's order, without forecasts."""
    providers = fleet.scenario.providers
    models: dict[str, Tree] = {}
    for provider in providers:
        for model in provider.models:
            kind = ["embeddings"] if model.kind == "embeddings" else ["chat", "streaming", "tools", "vision"]
            entry = models.setdefault(model.id, {"id": model.id, "capabilities": kind, "endpoints": []})
            entry["endpoints"].append(
                {
                    "provider": provider.name,
                    "provider_model": model.provider_model_id,
                    "input_usd_per_mtok": model.input_per_million_usd,
                    "output_usd_per_mtok": model.output_per_million_usd,
                }
            )
    named = [{"name": p.name, "base_url": fleet.url(p.name), "region": p.region, "zone": p.zone} for p in providers]
    return {
        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "drain_s": 5},
        "data_dir": str(data_dir),
        "providers": named,
        "models": list(models.values()),
        "scoring": {"enabled": False},
        "history": {"flush_s": 0.05},
        **sections,
    }


def write_config(path: Path, tree: Mapping[str, Any]) -> Path:
    """Write a configuration file and return its path."""
    path.write_text(yaml.safe_dump(dict(tree)), encoding="utf-8")
    return path


@dataclass(slots=True)
class Client:
    """Everything a caller may hold: a stub, an HTTP session, the official SDK (which never retries here)."""

    ports: Ports
    channel: grpc.aio.Channel
    stub: "router_pb2_grpc.RouterServiceAsyncStub"
    http: aiohttp.ClientSession
    sdk: openai.AsyncOpenAI

    @property
    def url(self) -> str:
        """Root of the HTTP edge."""
        return f"http://127.0.0.1:{self.ports.http}"

    async def complete(self, *messages: chat_pb2.ChatMessage, **options: Any) -> router_pb2.CompleteResponse:
        """Complete over gRPC; `options` are RoutingOptions."""
        return await self.stub.Complete(complete_request(*messages, **options), timeout=DEADLINE_S)

    async def states(self, model: str = GPT4) -> dict[str, str]:
        """The health state of each provider's endpoint of a model."""
        listed = await self.stub.ListModels(router_pb2.ListModelsRequest(), timeout=DEADLINE_S)
        (found,) = (each for each in listed.models if each.id == model)
        prefix = "HEALTH_STATE_"
        return {e.provider: routing_pb2.HealthState.Name(e.state).removeprefix(prefix) for e in found.endpoints}

    async def explain(self, decision_id: str) -> router_pb2.ExplainRouteResponse:
        """The decision log's word on a decision."""
        request = router_pb2.ExplainRouteRequest(decision_id=decision_id)
        return await self.stub.ExplainRoute(request, timeout=DEADLINE_S)


@dataclass(slots=True)
class Service(Client):
    """A service in this process. `history` stops it first, so that every row is on the disk."""

    data_dir: Path
    stack: AsyncExitStack = field(repr=False)

    async def history(self, query: str) -> list[tuple[Any, ...]]:
        """Stop the service and ask its history."""
        await self.stack.aclose()
        return read_history(self.data_dir, query)


def read_history(data_dir: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the history on the disk as it is now."""
    with connect(data_dir / "history") as connection:
        return connection.execute(query).fetchall()


async def connected(ports: Ports, stack: AsyncExitStack) -> Client:
    """Clients of both edges, closed with `stack`."""
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{ports.grpc}"))
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
    sdk = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{ports.http}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S
    )
    await stack.enter_async_context(sdk)
    return Client(ports, channel, router_pb2_grpc.RouterServiceStub(channel), http, sdk)


@asynccontextmanager
async def in_process(fleet: ProviderFleet, directory: Path, **sections: Any) -> AsyncIterator[Service]:
    """The service as `routecast serve` builds it, on this event loop; `sections` replace those of the configuration."""
    data_dir = directory / "data"
    config = load(write_config(directory / "routecast.yaml", config_for(fleet, data_dir, **sections)))
    async with AsyncExitStack() as stack:
        ports = await stack.enter_async_context(running(config))
        client = await connected(ports, stack)
        yield Service(client.ports, client.channel, client.stub, client.http, client.sdk, data_dir, stack)


@dataclass(slots=True)
class ServiceProcess(Client):
    """A service as a process of its own."""

    process: asyncio.subprocess.Process
    errors: list[str]

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def as_process(config: Path, *, prefix: Sequence[str] = ()) -> AsyncIterator[ServiceProcess]:
    """`routecast serve` with the file; `prefix` is put before the command. Killed at the end if it still runs."""
    ports_file = config.with_name("ports.json")
    ports_file.unlink(missing_ok=True)
    command = [*prefix, sys.executable, "-m", "service.cli", "serve", "--config", str(config)]
    process = await asyncio.create_subprocess_exec(
        *command, "--ports-file", str(ports_file), stderr=asyncio.subprocess.PIPE, env=os.environ | {"COLUMNS": "200"}
    )
    assert process.stderr is not None
    errors: list[str] = []
    serving = asyncio.Event()

    async def listen(pipe: asyncio.StreamReader) -> None:
        async for line in pipe:
            errors.append(line.decode())
            if errors[-1].startswith("serving gRPC"):
                serving.set()
        serving.set()

    listening = asyncio.create_task(listen(process.stderr))
    try:
        async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
            await serving.wait()
            assert process.returncode is None, "".join(errors)
            await until(lambda: _appeared(ports_file))
            client = await connected(Ports(**json.loads(ports_file.read_text())), stack)
            clients = stack.pop_all()
        async with clients:
            yield ServiceProcess(client.ports, client.channel, client.stub, client.http, client.sdk, process, errors)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await listening


async def run_to_end(
    *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a command to its end, in `cwd` and with `environment` added to ours; return its exit code and what it printed
    and said. Killed if it does not end.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | (environment or {}), stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), errors.decode()


async def _appeared(path: Path) -> bool:
    return await asyncio.to_thread(path.exists)


async def until(holds: Callable[[], Awaitable[bool]], *, deadline_s: float = DEADLINE_S) -> None:
    """Ask again until it holds; raises TimeoutError after the deadline."""
    async with asyncio.timeout(deadline_s):
        while not await holds():  # noqa: ASYNC110  # what another process does sets no event here
            await asyncio.sleep(0.01)


def user(text: str) -> chat_pb2.ChatMessage:
    """A user's message."""
    return chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, text=text)


def complete_request(*messages: chat_pb2.ChatMessage, **options: Any) -> router_pb2.CompleteRequest:
    """A Complete call of the chat model; `options` are RoutingOptions."""
    chat = chat_pb2.ChatRequest(model=GPT4, messages=messages or [user("hello")])
    return router_pb2.CompleteRequest(chat=chat, routing=routing_pb2.RoutingOptions(**options))


def stream_request(*messages: chat_pb2.ChatMessage, extra: bytes = b"", **options: Any) -> Any:
    """A StreamComplete call of the chat model; `options` are RoutingOptions."""
    chat = chat_pb2.ChatRequest(model=GPT4, messages=messages or [user("hello")], extra_json=extra)
    return router_pb2.StreamCompleteRequest(chat=chat, routing=routing_pb2.RoutingOptions(**options))


def details(error: grpc.aio.AioRpcError) -> dict[type[Message], Any]:
    """The google.rpc details of an error by their type."""
    trailers = dict(error.trailing_metadata())
    packed_status = trailers["grpc-status-details-bin"]
    assert isinstance(packed_status, bytes)
    status = Status.FromString(packed_status)
    assert (status.code, status.message) == (error.code().value[0], error.details())
    found: dict[type[Message], Any] = {}
    for packed in status.details:
        for kind in (ErrorInfo, RetryInfo, BadRequest, routing_pb2.RoutingReport):
            detail = kind()
            if packed.Unpack(detail):
                found[kind] = detail
    return found


def tried(report: routing_pb2.RoutingReport) -> list[tuple[str, str]]:
    """Provider and outcome of each attempt."""
    return [(a.provider, routing_pb2.Outcome.Name(a.outcome).removeprefix("OUTCOME_")) for a in report.attempts]
