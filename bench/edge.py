"""What the service costs a request, against a floor that forwards without any logic, in front of the same simulated
provider.

CPU µs are those of the server process under test alone, from the kernel's own accounting.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import grpc
from routecast.v1 import chat_pb2, router_pb2, router_pb2_grpc

from bench.figure import Figure, process_cpu_s

_MODEL = "openai/gpt-4"
_REQUESTS, _ROUNDS, _AT_ONCE = 600, 3, 16
_BODY = json.dumps({"model": _MODEL, "messages": [{"role": "user", "content": "x" * 100}]}).encode()
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
"""
_READY_S = 30.0

Send = Callable[[], Awaitable[object]]


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


async def _drive(send: Send, pid: int) -> float:
    """Return the server's CPU µs per request: median of the rounds, after one that is not counted."""
    costs = []
    for _ in range(_ROUNDS + 1):
        before = process_cpu_s(pid)
        left = iter(range(_REQUESTS))

        async def work(numbers: Iterator[int] = left) -> None:
            for _ in numbers:
                await send()

        await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
        costs.append((process_cpu_s(pid) - before) / _REQUESTS * 1e6)
    return median(costs[1:])


async def _http(url: str, pid: int) -> float:
    async with aiohttp.ClientSession() as session:

        async def send() -> None:
            async with session.post(url, data=_BODY) as response:
                if response.status != 200:
                    raise RuntimeError(await response.text())
                await response.read()

        return await _drive(send, pid)


async def _grpc(address: str, pid: int) -> dict[str, float]:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, text="x" * 100)
    complete = router_pb2.CompleteRequest(chat=chat_pb2.ChatRequest(model=_MODEL, messages=[message]))
    route = router_pb2.RouteRequest(model=_MODEL)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)
        return {
            "gRPC Complete": await _drive(lambda: stub.Complete(complete), pid),
            "gRPC Route": await _drive(lambda: stub.Route(route), pid),
        }


def run() -> list[Figure]:
    """Measure both edges against the floor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenario.yaml").write_text(_SCENARIO)
        providers = [
            "sim.provider_server",
            "--scenario",
            str(folder / "scenario.yaml"),
            "--ports-file",
            str(folder / "sim"),
        ]
        with _server(providers, folder / "sim") as (_, sim):
            upstream = f"http://127.0.0.1:{sim['ports']['only']}/v1"
            (folder / "routecast.yaml").write_text(
                json.dumps(
                    {
                        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
                        "providers": [{"name": "only", "base_url": upstream}],
                        "models": [{"id": _MODEL, "endpoints": [{"provider": "only", "provider_model": _MODEL}]}],
                    }
                )
            )
            os.environ["ROUTECAST_BENCH_UPSTREAM"] = f"{upstream}/chat/completions"
            with _server(["bench.floor", str(folder / "floor")], folder / "floor") as (pid, ports):
                floor = asyncio.run(_http(f"http://127.0.0.1:{ports['http']}/", pid))
            service = [
                "service.cli",
                "serve",
                "--config",
                str(folder / "routecast.yaml"),
                "--ports-file",
                str(folder / "ports"),
            ]
            with _server(service, folder / "ports") as (pid, ports):
                costs = {
                    "HTTP chat completion": asyncio.run(
                        _http(f"http://127.0.0.1:{ports['http']}/v1/chat/completions", pid)
                    )
                }
                costs |= asyncio.run(_grpc(f"127.0.0.1:{ports['grpc']}", pid))
    against = "floor: aiohttp forwarding without logic"
    return [Figure(against, floor), *(Figure(what, cost, cost / floor, against) for what, cost in costs.items())]
