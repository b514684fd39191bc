"""The processes of the demo: started on free ports of 127.0.0.1, awaited until they are ready, ended by their pid.

The rule of this file: whatever happens inside the `async with`, no process outlives it.
"""

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sim.demo.story import SCENARIO_FILE, Story, service_config

_START_S = 30.0
_STOP_S = 15.0
_LOOK_AGAIN_S = 0.02
_LOG_LINES = 15


class ProcessError(RuntimeError):
    """A process did not start, or ended on its own; carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the demo's processes listen on 127.0.0.1. `control_port` is the simulated providers'."""

    grpc: str
    http_url: str
    control_port: int


@asynccontextmanager
async def running(story: Story, folder: Path) -> AsyncIterator[Addresses]:
    """Run providers and service within the block, with configuration, logs and data in `folder`.

    Raises ProcessError when one of them does not come up.
    """
    async with contextlib.AsyncExitStack() as stack:
        providers = await stack.enter_async_context(
            _child(
                folder / "providers.log",
                "sim.provider_server",
                f"--scenario={SCENARIO_FILE}",
                f"--scale={story.scale}",
                f"--ports-file={folder / 'providers.json'}",
            )
        )
        fleet = await _announced(providers, folder / "providers.json", folder / "providers.log")
        config = folder / "routecast.yaml"
        config.write_text(yaml.safe_dump(service_config(story, fleet["ports"], folder / "data"), sort_keys=False))
        service = await stack.enter_async_context(
            _child(
                folder / "service.log",
                "service.cli",
                "serve",
                f"--config={config}",
                f"--ports-file={folder / 'service.json'}",
            )
        )
        ports = await _announced(service, folder / "service.json", folder / "service.log")
        target = f"127.0.0.1:{ports['grpc']}"
        await _serving(target, folder / "service.log")
        yield Addresses(target, f"http://127.0.0.1:{ports['http']}/v1", fleet["control_port"])


@asynccontextmanager
async def _child(log: Path, module: str, *arguments: str) -> AsyncIterator[Process]:
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches the demo alone, which then ends its children in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *arguments,
            stdin=DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        await asyncio.shield(_end(process))


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _announced(process: Process, ports_file: Path, log: Path) -> Any:
    """Wait for the file that appears whole once the process listens, and return what it says."""
    try:
        async with asyncio.timeout(_START_S):
            while (announced := _read(ports_file)) is None:
                if process.returncode is not None:
                    raise ProcessError(f"ended with status {process.returncode} before it was ready\n{tail(log)}")
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        raise ProcessError(f"not ready within {_START_S:g} s\n{tail(log)}") from None
    return announced


async def _serving(target: str, log: Path) -> None:
    """Wait until the service's own health check says SERVING."""
    serving = health_pb2.HealthCheckResponse.SERVING
    try:
        async with asyncio.timeout(_START_S), grpc.aio.insecure_channel(target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(service="routecast.v1.RouterService"), wait_for_ready=True
            )
            async for response in watch:
                if response.status == serving:
                    return
    except (TimeoutError, grpc.aio.AioRpcError) as error:
        raise ProcessError(f"the service does not say it is serving: {error}\n{tail(log)}") from error


def _read(ports_file: Path) -> Any:
    return json.loads(ports_file.read_text()) if ports_file.exists() else None


def tail(log: Path) -> str:
    """The last lines of a log, each with the log's name."""
    lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(f"  {log.name}: {line}" for line in lines)
