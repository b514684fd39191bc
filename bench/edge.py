"""What the service costs a request, and an event of a stream, against floors that forward without any logic, in front
of the same simulated provider.

CPU µs are those of the server process under test alone, all of its threads, from the kernel's own accounting. Floors
and service run side by side and take turns, so that what else the machine does falls on all of them; a ratio is the
median of those of the rounds.
"""

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc
from routecast.v1 import chat_pb2, router_pb2, router_pb2_grpc

from bench.figure import Figure, process_cpu_s

_MODEL = "openai/gpt-4"
_STREAMED = "openai/gpt-4o"
_REQUESTS, _ROUNDS, _AT_ONCE = 500, 7, 16
_STREAMS, _EVENTS = 64, 64
_TEXT = "x" * 100
_SCENARIO = """
name: bench
seed: 1
duration_s: 3600
providers:
  - name: only
    region: here
    zone: here-a
    ttft_ms: 1
    tokens_per_s: 100000
    models: [{id: openai/gpt-4, provider_model_id: openai/gpt-4, context_window: 128000}]
  - name: paced
    region: here
    zone: here-a
    ttft_ms: 1
    tokens_per_s: 200
    models: [{id: openai/gpt-4o, provider_model_id: openai/gpt-4o, context_window: 128000}]
"""
_READY_S = 30.0
_FLOOR = "floor: aiohttp forwarding without logic"
_STREAM_FLOOR = "floor: aiohttp forwarding a stream, per event"

Send = Callable[[], Awaitable[object]]


@dataclass(slots=True)
class _Target:
    """One operation of one server. Of a stream, `events` tells how many it has, and costs are those of one of them."""

    what: str
    against: str
    pid: int
    send: Send
    events: int = 0
    costs_us: list[float] = field(default_factory=list)

    async def drive(self) -> float:
        """Send a round; return the server's CPU µs per operation."""
        sends = _STREAMS if self.events else _REQUESTS
        before = process_cpu_s(self.pid)
        left = iter(range(sends))

        async def work() -> None:
            for _ in left:
                await self.send()

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        return (process_cpu_s(self.pid) - before) / (sends * (self.events or 1)) * 1e6


@contextmanager
def _server(arguments: list[str], ports_file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Run a server process until the block ends; yield its pid and the ports it wrote."""
    process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + _READY_S
        while not ports_file.exists():
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{arguments[0]} did not come up")
            time.sleep(0.05)
        yield process.pid, json.loads(ports_file.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _body(model: str, **more: object) -> str:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": _TEXT}], **more})


_WHOLE_BODY = _body(_MODEL)
_STREAM_BODY = _body(_STREAMED, stream=True, max_tokens=_EVENTS)


def _http(session: aiohttp.ClientSession, url: str, body: str) -> Send:
    data = body.encode()

    async def send() -> bytes:
        async with session.post(url, data=data) as response:
            answer = await response.read()
            if response.status != 200:
                raise RuntimeError(answer)
            return answer

    return send


def _grpc(stub: "router_pb2_grpc.RouterServiceAsyncStub") -> tuple[Send, Send, Send]:
    """Return what calls Complete, Route and StreamComplete."""
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, text=_TEXT)
    whole = router_pb2.CompleteRequest(chat=chat_pb2.ChatRequest(model=_MODEL, messages=[message]))
    streamed = router_pb2.StreamCompleteRequest(
        chat=chat_pb2.ChatRequest(model=_STREAMED, messages=[message], max_output_tokens=_EVENTS)
    )
    route = router_pb2.RouteRequest(model=_MODEL)

    async def stream() -> None:
        async for _ in stub.StreamComplete(streamed):
            pass

    return lambda: stub.Complete(whole), lambda: stub.Route(route), stream


@asynccontextmanager
async def _stub(port: int) -> AsyncIterator["router_pb2_grpc.RouterServiceAsyncStub"]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)


async def _measure(floor: tuple[int, dict[str, Any]], service: tuple[int, dict[str, Any]]) -> list[Figure]:
    (floor_pid, floor_ports), (pid, ports) = floor, service
    bare = f"http://127.0.0.1:{floor_ports['http']}/"
    chat = f"http://127.0.0.1:{ports['http']}/v1/chat/completions"
    async with (
        aiohttp.ClientSession() as session,
        _stub(floor_ports["grpc"]) as bare_stub,
        _stub(ports["grpc"]) as stub,
    ):
        forward, answer, forward_stream = _grpc(bare_stub)
        complete, route, stream_complete = _grpc(stub)
        targets = [
            _Target(_FLOOR, _FLOOR, floor_pid, _http(session, bare, _WHOLE_BODY)),
            _Target("HTTP chat completion", _FLOOR, pid, _http(session, chat, _WHOLE_BODY)),
            _Target("floor: grpc.aio in, aiohttp out, without logic", _FLOOR, floor_pid, forward),
            _Target("gRPC Complete", _FLOOR, pid, complete),
            _Target("floor: grpc.aio answering without logic", _FLOOR, floor_pid, answer),
            _Target("gRPC Route", _FLOOR, pid, route),
            _Target(_STREAM_FLOOR, _STREAM_FLOOR, floor_pid, _http(session, f"{bare}stream", _STREAM_BODY), _EVENTS),
            _Target("HTTP stream, per event", _STREAM_FLOOR, pid, _http(session, chat, _STREAM_BODY), _EVENTS),
            _Target("floor: grpc.aio stream, per event", _STREAM_FLOOR, floor_pid, forward_stream, _EVENTS),
            _Target("gRPC StreamComplete, per event", _STREAM_FLOOR, pid, stream_complete, _EVENTS),
        ]
        for target in targets:
            await target.drive()  # not counted
        for _ in range(_ROUNDS):
            for target in targets:
                target.costs_us.append(await target.drive())
    floors = {target.what: target.costs_us for target in targets}
    return [_figure(target, floors[target.against]) for target in targets]


def _figure(target: _Target, floor_us: list[float]) -> Figure:
    us = median(target.costs_us)
    if target.what == target.against:
        return Figure(target.what, us)
    return Figure(
        target.what, us, median(a / b for a, b in zip(target.costs_us, floor_us, strict=True)), target.against
    )


def run() -> list[Figure]:
    """Measure both edges against the floors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenario.yaml").write_text(_SCENARIO)
        providers = ["sim.provider_server", "--scenario", str(folder / "scenario.yaml")]
        with _server([*providers, "--ports-file", str(folder / "sim")], folder / "sim") as (_, sim):
            urls = {name: f"http://127.0.0.1:{port}/v1" for name, port in sim["ports"].items()}
            models = {_MODEL: "only", _STREAMED: "paced"}
            config = {
                "data_dir": str(folder / "data"),
                "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
                "providers": [{"name": name, "base_url": url} for name, url in urls.items()],
                "models": [
                    {"id": model, "endpoints": [{"provider": provider, "provider_model": model}]}
                    for model, provider in models.items()
                ],
            }
            (folder / "routecast.yaml").write_text(json.dumps(config))
            calls = [
                json.dumps({"url": f"{urls[provider]}/chat/completions", "body": body})
                for provider, body in (("only", _WHOLE_BODY), ("paced", _STREAM_BODY))
            ]
            serve = ["service.cli", "serve", "--config", str(folder / "routecast.yaml")]
            with (
                _server(["bench.floor", str(folder / "floor"), *calls], folder / "floor") as floor,
                _server([*serve, "--ports-file", str(folder / "ports")], folder / "ports") as service,
            ):
                return asyncio.run(_measure(floor, service))
