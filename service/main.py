"""The composition root: builds a service from its configuration, starts it, and stops it in order."""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from analytics.segments import SegmentWriter
from analytics.writer import HistoryWriter
from routing.engine import Engine
from scoring.threshold_store import ThresholdStore
from service.callers import Callers, Operators
from service.clock import Clock, SteadyClock
from service.config import Config
from service.health_board import HealthBoard
from service.history import HistoryListener, Sink, fan_out
from service.http.openai import OpenAiRoutes
from service.http.server import HttpServer
from service.operations import Operations
from service.prewarm import Prewarmer
from service.probes import Prober
from service.providers.factory import adapter_for, transport_for
from service.refresh import ScoringLink
from service.router import Listener, Router
from service.rpc.failover_service import FailoverService
from service.rpc.router_service import RouterService
from service.rpc.server import RpcServer
from service.stack import stacked
from service.telemetry import Metrics
from service.tenants import gate_for
from service.thresholds import ThresholdKeeper

log = logging.getLogger(__name__)

_TICK_S = 0.25
_HISTORY_CLOSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a started service listens."""

    grpc: int
    http: int
    metrics: int


@asynccontextmanager
async def running(config: Config, listeners: Iterable[Listener] = ()) -> AsyncIterator[Ports]:
    """Run a service within the block; `listeners` hear of all that its router learns. Raises OSError when an address is
    taken.

    On leaving: health says NOT_SERVING, requests in flight finish within the drain period, history is made durable.
    """
    clock, policy = SteadyClock(), config.policy.policy()
    engine = Engine(config.catalogue(), policy, clock.now())
    router = Router(engine, clock, Random())
    writer = HistoryWriter(
        SegmentWriter(config.data_dir / "history", config.replica, epoch=time.time_ns()),
        flush_s=config.history.flush_s,
        flush_rows=config.history.flush_rows,
        max_pending=config.history.buffer_rows,
    )
    gate = gate_for(config.tenants, config.overload, clock.now())
    metrics = Metrics(
        lambda: engine.snapshot, writer.stats, lambda: engine.budgets.standing(clock.now()), lambda: gate.load
    )
    sink = fan_out(writer.put, metrics.put)
    board = HealthBoard(engine)
    heard: tuple[Listener, ...] = (HistoryListener(sink, config.replica), board, *listeners)
    for listener in heard:
        router.listen(listener)

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, writer.close, _HISTORY_CLOSE_S)
        transport = transport_for(config.upstream)
        stack.push_async_callback(transport.aclose)
        adapters = {provider.name: adapter_for(provider, transport) for provider in config.providers}
        base_urls = {provider.name: provider.base_url for provider in config.providers}
        if config.upstream.prewarm:
            prewarmer = Prewarmer(
                transport,
                base_urls,
                connections=config.upstream.prewarm,
                connect_s=policy.attempts.connect_timeout_s,
            )
            router.listen(prewarmer)
            await _background(stack, prewarmer.run(), "prewarmer")
        prober = Prober(router, adapters, sink, policy.attempts, config.replica)
        router.probe_with(prober.probe)
        stack.push_async_callback(prober.stop)
        if config.scoring.enabled:
            link = ScoringLink(
                router,
                config.scoring,
                config.data_dir,
                config.replica,
                retention_s=config.history.retention_s(),
            )
            router.listen(link)
            await _background(stack, link.run(), "scoring link")
        await _background(stack, _tick(_keeper(config, engine, sink, clock).look, router.tick), "tick")

        serving = await stack.enter_async_context(stacked(config, router, adapters, transport, sink, clock, gate))
        callers = Callers(config.tenants)
        limit = config.server.max_body_bytes
        operations = Operations(router, board, prober, sink, config.replica)
        rpc = RpcServer(
            RouterService(router, serving.serving, callers, sink, base_urls, config.replica),
            FailoverService(board, operations, Operators(config.operators)),
            limit,
        )
        http = HttpServer(
            OpenAiRoutes(serving.serving, callers, engine.catalogue),
            metrics.render,
            max_body_bytes=limit,
            drain_s=config.server.drain_s,
        )

        async def stop_serving() -> None:
            board.close()
            await rpc.announce_stop()
            http.announce_stop()
            await asyncio.sleep(config.server.lame_duck_s)
            serving.close()
            drain_s = config.server.drain_s
            await asyncio.gather(rpc.stop(drain_s), http.stop(), serving.drain(drain_s))

        stack.push_async_callback(stop_serving)
        ports = Ports(await rpc.start(config.server.grpc), *await http.start(config.server.http, config.server.metrics))
        yield ports


def _keeper(config: Config, engine: Engine, sink: Sink, clock: Clock) -> ThresholdKeeper:
    """Put the thresholds in force, and return who looks after them."""
    store = ThresholdStore(config.data_dir)
    keeper = ThresholdKeeper(store, config.policy.policy(), engine.adopt, sink, clock, config.replica)
    keeper.look()
    return keeper


async def _background(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run `work` until the stack closes."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_report_death)

    async def cancel() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(cancel)


def _report_death(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception() is not None:
        log.critical("%s has ended", task.get_name(), exc_info=task.exception())


async def _tick(*ticks: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_TICK_S)
        for tick in ticks:
            try:
                tick()
            except Exception:
                log.exception("a tick failed; what it looks after stays as it was")


async def serve(config: Config, announce: Callable[[Ports], None]) -> None:
    """Serve until SIGTERM or SIGINT. `announce` is told the ports once all of them listen."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(config) as ports:
        announce(ports)
        await stop.wait()
        log.info("stopping: requests in flight may take up to %g s", config.server.drain_s)
