"""The service as a process: start, health, reflection, the way down, and what it does while parts of it fail (F-20)."""

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import (
    Service,
    as_process,
    config_for,
    read_history,
    run_to_end,
    stream_request,
    until,
    write_config,
)

BUF = Path(sys.executable).with_name("buf")
ROUTER = "routecast.v1.RouterService"
FAILOVER = "routecast.admin.v1.FailoverService"
SERVING = health_pb2.HealthCheckResponse.SERVING


async def test_grpc_health_checks_watches_and_lists(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", ROUTER, FAILOVER):
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    listed = await stub.List(health_pb2.HealthListRequest())
    assert {name: each.status for name, each in listed.statuses.items()} == dict.fromkeys(
        ("", ROUTER, FAILOVER), SERVING
    )
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=ROUTER))
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_a_generic_grpc_tool_finds_its_way_by_reflection(service: Service) -> None:
    url = f"http://127.0.0.1:{service.ports.grpc}"
    options = ("curl", "--protocol", "grpc", "--http2-prior-knowledge")
    asked = {"chat": {"model": "openai/gpt-4", "messages": [{"role": "ROLE_USER", "text": "hello"}]}}
    for arguments, expected in (
        (("--list-methods", url), f"{ROUTER}/Complete"),
        (("--data", json.dumps(asked), f"{url}/{ROUTER}/Complete"), "aurora received 1 messages"),
    ):
        code, out, errors = await run_to_end(str(BUF), *options, *arguments)
        assert code == 0, errors
        assert expected in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_f11_a_stream_in_flight_finishes_while_the_service_drains(
    providers: ProviderFleet, tmp_path: Path, number: signal.Signals
) -> None:
    await providers.inject(Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.002))
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    async with as_process(config) as service:
        health = health_pb2_grpc.HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await health.read()).status == SERVING
        messages = aiter(service.stub.StreamComplete(stream_request()))
        assert (await anext(messages)).WhichOneof("event") == "chunk"
        http = await service.http.post(
            f"{service.url}/v1/chat/completions",
            json={"model": "openai/gpt-4", "messages": [{"role": "user", "content": "x"}], "stream": True},
        )
        assert await http.content.readline()

        ending = asyncio.create_task(service.end(number))
        assert (await health.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        rest = [message async for message in messages]
        assert rest[-1].WhichOneof("event") == "report"
        assert (await http.read()).endswith(b"data: [DONE]\n\n")
        assert await ending == 0, "".join(service.errors)
    found = read_history(tmp_path / "data", "SELECT edge, status FROM requests ORDER BY edge")
    assert found == [("grpc", "ok"), ("http", "ok")]


async def test_a_taken_port_is_told_and_ends_with_1(providers: ProviderFleet, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for edge, other in (("grpc", "http"), ("http", "grpc")):
            server = {edge: address, other: "127.0.0.1:0"}
            tree = config_for(providers, tmp_path / "data", server=server)
            config = str(write_config(tmp_path / "routecast.yaml", tree))
            code, _, errors = await run_to_end(sys.executable, "-m", "service.cli", "serve", "--config", config)
            assert code == 1
            assert str(taken.getsockname()[1]) in errors
            assert "Traceback" not in errors


async def _fills_and_recovers(service: Any, data_dir: Path, free: Any) -> None:
    """Requests are answered while history cannot be written; what was kept is written once it can be."""

    async def metric(name: str) -> float:
        async with service.http.get(f"{service.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"routecast_history_{name}_rows "))

    async def served_with_rows_waiting() -> bool:
        assert (await service.complete()).routing.provider == "aurora"
        return await metric("pending") > 50

    await until(served_with_rows_waiting)
    written = await metric("written")
    await free()

    async def caught_up() -> bool:
        return await metric("pending") == 0

    await until(caught_up)
    assert await metric("written") > written
    assert await metric("dropped") == 0


async def test_f20_a_full_disk_of_history_breaks_no_request(providers: ProviderFleet, tmp_path: Path) -> None:
    """A real, full file system in a mount namespace of the service's own."""
    data_dir, mounted = tmp_path / "data", tmp_path / "mounted"
    data_dir.mkdir()
    probe = await asyncio.create_subprocess_exec(
        *("unshare", "-m", "mount", "-t", "tmpfs", "none", str(data_dir)), stderr=asyncio.subprocess.DEVNULL
    )
    if await probe.wait():
        pytest.skip("mounting needs privileges this environment does not give")
    script = (
        f"mount -t tmpfs -o size=256k none {data_dir} && head -c 1m /dev/zero > {data_dir}/ballast;"
        f' touch {mounted}; exec "$@"'
    )
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, data_dir))
    async with as_process(config, prefix=("unshare", "-m", "sh", "-c", script, "sh")) as service:
        assert mounted.exists()
        ballast = Path(f"/proc/{service.process.pid}/root{data_dir}/ballast")

        async def free() -> None:
            await asyncio.to_thread(ballast.unlink)

        await _fills_and_recovers(service, data_dir, free)
        assert await service.end() == 0
