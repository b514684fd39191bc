"""One run of the story: processes up, load on, the scenario's clock started, everything watched, all of it ended.

The rule of this file: nothing is left running, whether the story ends, fails or is interrupted.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
from rich.console import Console
from rich.live import Live

from sim.demo.load import Load, Sent
from sim.demo.processes import ProcessError, running, tail
from sim.demo.screen import Screen
from sim.demo.story import Story
from sim.demo.watch import Watcher

_FRAME_S = 0.25


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is over. Times are unix seconds; `began` is when the scenario's clock started.

    `threshold`: the forecast risk at which the service moved traffic, None without a forecaster.
    """

    started: float
    began: float
    ended: float
    sent: tuple[Sent, ...]
    threshold: float | None


async def tell(story: Story, folder: Path, console: Console) -> Run:
    """Run the story with configuration, logs and history in `folder`. No process is left on return.

    Raises ProcessError when a process does not come up or does not stay up.
    """
    try:
        async with (
            running(story, folder) as addresses,
            Load(addresses, story) as load,
            Watcher(addresses.grpc, story) as watcher,
        ):
            screen, stop, started = Screen(story, load.sent, watcher), asyncio.Event(), time.time()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watcher.run(stop))
                tasks.create_task(_show(screen, console, stop))
                tasks.create_task(load.run(stop))
                await asyncio.sleep(story.warm_up_s)
                began = screen.began = await _start_clock(addresses.control_port)
                await asyncio.sleep(story.scenario.duration_s)
                stop.set()
            return Run(started, began, time.time(), tuple(load.sent), watcher.threshold)
    except ExceptionGroup as group:
        lost = group.subgroup((grpc.aio.AioRpcError, httpx.HTTPError))
        if lost is None:
            raise
        logs = "\n".join(tail(folder / name) for name in ("service.log", "providers.log"))
        raise ProcessError(f"a process no longer answers: {_reason(lost)}\n{logs}") from group


def _reason(lost: BaseException) -> str:
    while isinstance(lost, BaseExceptionGroup):
        lost = lost.exceptions[0]
    return lost.details() or "" if isinstance(lost, grpc.aio.AioRpcError) else str(lost)


async def _start_clock(control_port: int) -> float:
    """Start the scenario's clock and return the unix time at which it stood at zero."""
    async with httpx.AsyncClient(trust_env=False) as client:
        reply = await client.post(f"http://127.0.0.1:{control_port}/start")
    reply.raise_for_status()
    return time.time() - float(reply.json()["t_s"])


async def _show(screen: Screen, console: Console, stop: asyncio.Event) -> None:
    if console.is_terminal:
        with Live(screen, console=console, auto_refresh=False) as live:
            while not await _waited(stop):
                live.refresh()
    else:
        while not await _waited(stop):
            screen.plain(console)


async def _waited(stop: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(_FRAME_S):
            await stop.wait()
    except TimeoutError:
        return False
    return True
