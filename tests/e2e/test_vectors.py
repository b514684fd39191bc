"""What a real service logged is what its history says it was: features filled in from recorded attempts are identical
to those that its scoring process computed, bit for bit, whatever became of the attempts.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from routecast.v1 import router_pb2, routing_pb2

from analytics.store import connect
from analytics.training import training_rows
from scoring.backfill import backfilled
from scoring.features import FEATURE_SET, NAMES
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario
from tests.service_under_test import (
    GPT4,
    QUICK_RETURN,
    SCENARIO,
    ServiceProcess,
    as_process,
    complete_request,
    config_for,
    read_history,
    stream_request,
    until,
    write_config,
)

STORY_S = 90.0
POLICY = {"failback": QUICK_RETURN, "hedge": {"floor_s": 0.02, "max_share": 0.5}}
# With what history has to show of each before the next one begins.
TROUBLE = {
    FaultKind.HANG: (
        "heard = 'outrun'",
        "outcome = 'timeout' AND heard = 'cancelled'",  # the deadline was its caller's own
        "outcome = 'cancelled' AND heard = 'timeout'",  # its caller left, but not for haste
    ),
    FaultKind.RATE_LIMIT: ("outcome = 'rate_limited'",),
    FaultKind.ERROR_RATE: ("outcome = 'server_error' AND kind = 'live'",),
    FaultKind.TRUNCATE: ("error = 'the stream ended before its answer was complete'",),
    FaultKind.RESET: ("error = 'connection reset by peer'",),
}
HASTE_S, PATIENCE_S = 0.05, 3.0
SERVING = "SELECT split_part(endpoint, ':', 1) FROM attempts WHERE kind = 'live' ORDER BY time DESC LIMIT 1"
STILL_OPEN = "SELECT max(time) FROM health WHERE time > (SELECT max(time) + INTERVAL 1 SECOND FROM attempts)"
COMPARED = f"FROM health SELECT count(*) WHERE features[{NAMES.index('latency_z_15s') + 1}] <> 0"


async def _stream(service: ServiceProcess, **options: Any) -> None:
    async for _ in service.stub.StreamComplete(stream_request(**options), timeout=10):
        pass


async def _traffic(service: ServiceProcess, rounds: int, **options: Any) -> None:
    """Whole answers and streams, four at a time; some will fail, as the faults of the moment let them."""
    for _ in range(rounds):
        whole = [service.complete(**options) for _ in range(2)]
        await asyncio.gather(*whole, *(_stream(service, **options) for _ in range(2)), return_exceptions=True)


async def _advised(service: ServiceProcess) -> None:
    """Calls that callers made themselves: a stream that began 1.5 s ago by their clock, a whole answer, a failure."""

    async def reports() -> AsyncIterator[router_pb2.ReportOutcomeRequest]:
        for outcome, ttft_ms in (
            (routing_pb2.OUTCOME_OK, 250),
            (routing_pb2.OUTCOME_OK, None),
            (routing_pb2.OUTCOME_SERVER_ERROR, None),
        ):
            report = router_pb2.ReportOutcomeRequest(endpoint_id=f"cirrus:{GPT4}", outcome=outcome, output_tokens=40)
            report.start_time.GetCurrentTime()
            report.start_time.seconds -= 2
            report.latency.FromMilliseconds(1501)
            if ttft_ms is not None:
                report.time_to_first_token.FromMilliseconds(ttft_ms)
            yield report

    assert (await service.stub.ReportOutcome(reports())).accepted == 3


async def _left_early(service: ServiceProcess) -> None:
    """A caller with a short deadline, one who soon hangs up, and one who waits longer than any answer takes here."""

    async def hung_up(patience_s: float) -> None:
        with suppress(TimeoutError, grpc.aio.AioRpcError):
            await asyncio.wait_for(_stream(service), patience_s)

    async def in_haste() -> None:
        with suppress(grpc.aio.AioRpcError):
            await service.stub.Complete(complete_request(), timeout=HASTE_S)

    await asyncio.gather(in_haste(), hung_up(HASTE_S), hung_up(PATIENCE_S))


async def _suffer(service: ServiceProcess, providers: ProviderFleet, data_dir: Path, kind: FaultKind) -> None:
    """Let a fault follow the traffic until history shows all that can become of it."""

    async def is_suffered() -> bool:
        ((provider,),) = read_history(data_dir, SERVING)
        await providers.inject(Fault(kind=kind, provider=provider, probability=0.7))
        await asyncio.gather(_traffic(service, 3, idempotent=True), *(_left_early(service) for _ in range(3)))
        await providers.clear()
        await _traffic(service, 1)
        shown = ", ".join(f"count(*) FILTER ({each}) > 0" for each in TROUBLE[kind])
        return all(read_history(data_dir, f"FROM attempts SELECT {shown}")[0])

    await until(is_suffered, deadline_s=STORY_S)


async def _story(service: ServiceProcess, providers: ProviderFleet, data_dir: Path) -> None:
    """Good times until there is a normal to compare with, then everything that can become of an attempt."""

    async def is_compared() -> bool:
        await _traffic(service, 3)
        return bool(read_history(data_dir, COMPARED)[0][0])

    await until(is_compared, deadline_s=STORY_S)
    await _advised(service)
    for kind in TROUBLE:
        await _suffer(service, providers, data_dir, kind)

    async def is_settled() -> bool:
        await _traffic(service, 1)
        probes = "SELECT count(*) FROM attempts WHERE kind = 'probe' AND outcome = 'ok'"
        return bool(read_history(data_dir, probes)[0][0])

    await until(is_settled, deadline_s=STORY_S)

    async def is_quiet() -> bool:
        return read_history(data_dir, STILL_OPEN)[0][0] is not None

    await until(is_quiet, deadline_s=STORY_S)


async def test_f16_vectors_filled_in_from_history_are_those_the_service_logged(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with ProviderFleet(parse_scenario(SCENARIO)) as providers:
        scoring = {"enabled": True, "tick_s": 0.2, "scheduling": "normal"}
        tree = config_for(providers, data_dir, scoring=scoring, policy=POLICY)
        async with as_process(write_config(tmp_path / "routecast.yaml", tree)) as service:

            async def is_forecasting() -> bool:
                asked = router_pb2.ExplainRouteRequest(request=router_pb2.RouteRequest(model=GPT4))
                return bool((await service.stub.ExplainRoute(asked)).forecaster)

            await until(is_forecasting)
            await _story(service, providers, data_dir)
            assert await service.end() == 0, "".join(service.errors)
    with connect(data_dir / "history") as connection:
        logged = training_rows(connection, 60.0, 0.0, 4e9, FEATURE_SET)
        filled = backfilled(connection, logged)
        kinds = {kind for (kind,) in connection.execute("SELECT DISTINCT kind FROM attempts").fetchall()}
        outcomes = {outcome for (outcome,) in connection.execute("SELECT DISTINCT outcome FROM attempts").fetchall()}
    assert kinds == {"live", "hedge", "probe", "advised"}
    assert {"ok", "cancelled", "timeout", "truncated", "server_error", "rate_limited"} <= outcomes
    different = np.flatnonzero((filled.x != logged.x).any(axis=0))
    assert not len(different), [NAMES[i] for i in different]
    assert len(np.unique(logged.x[:, NAMES.index("latency_z_60s")])) > 20, "the vectors say something"
