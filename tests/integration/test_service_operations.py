"""What operators see and do, over gRPC and from the shell.

Proves F-10 (live health, early), F-19 (health status per provider) and F-21 (switch, drain, restore; who, when, why).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from routecast.admin.v1 import failover_pb2, failover_pb2_grpc
from routecast.v1 import routing_pb2

from service.cli import main
from service.tenancy.keys import KEY_BYTES, SALT_BYTES, hash_of, new_key
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import DEADLINE_S, EMBED, GPT4, QUICK_RETURN, Service, details, in_process, tried, until

AURORA, CIRRUS = f"aurora:{GPT4}", f"cirrus:{GPT4}"
WHO = {"operator": "ada", "reason": "planned maintenance"}


@pytest.fixture
async def quick(providers: ProviderFleet, tmp_path: Path) -> AsyncIterator[Service]:
    async with in_process(providers, tmp_path, policy={"failback": QUICK_RETURN}) as service:
        yield service


def _admin(service: Service) -> Any:
    return failover_pb2_grpc.FailoverServiceStub(service.channel)


async def _health(service: Service, endpoint_id: str = AURORA) -> failover_pb2.EndpointHealth:
    request = failover_pb2.ListProviderHealthRequest()
    listed: failover_pb2.ListProviderHealthResponse = await _admin(service).ListProviderHealth(
        request, timeout=DEADLINE_S
    )
    (found,) = (e for provider in listed.providers for e in provider.endpoints if e.endpoint_id == endpoint_id)
    return found


async def test_f21_a_drained_endpoint_gets_nothing_until_it_is_restored(quick: Service) -> None:
    admin = _admin(quick)
    assert (await quick.complete()).routing.provider == "aurora"
    drained = await admin.DrainEndpoint(failover_pb2.DrainEndpointRequest(endpoint_id=AURORA, **WHO))
    assert drained.health.state == routing_pb2.HEALTH_STATE_DRAINING
    for _ in range(5):
        assert tried((await quick.complete()).routing) == [("borealis", "OK")]
    await admin.RestoreEndpoint(failover_pb2.RestoreEndpointRequest(endpoint_id=AURORA, operator="bob", reason="done"))

    async def home() -> bool:
        reply = await quick.complete()
        return reply.routing.provider == "aurora" and (await quick.states())["aurora"] == "ACTIVE"

    await until(home)
    assert await quick.history("SELECT operation, endpoint, operator, reason FROM operations ORDER BY time") == [
        ("drain", AURORA, "ada", "planned maintenance"),
        ("restore", AURORA, "bob", "done"),
    ]


async def test_f21_a_switch_by_hand_holds_until_it_is_ended(quick: Service) -> None:
    admin = _admin(quick)
    switched = await admin.SwitchModel(failover_pb2.SwitchModelRequest(model=GPT4, endpoint_id=CIRRUS, **WHO))
    assert switched.endpoint_id == CIRRUS
    assert (await quick.complete()).routing.provider == "cirrus"
    assert (await _health(quick, CIRRUS)).pinned
    await admin.SwitchModel(failover_pb2.SwitchModelRequest(model=GPT4, **WHO))
    assert (await quick.complete()).routing.provider == "aurora"
    rows = await quick.history("SELECT operation, endpoint FROM operations ORDER BY time")
    assert rows == [("switch", CIRRUS), ("release", "")]


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "field"),
    [
        ("DrainEndpoint", failover_pb2.DrainEndpointRequest(endpoint_id=AURORA), "INVALID_ARGUMENT", "", "operator"),
        (
            "DrainEndpoint",
            failover_pb2.DrainEndpointRequest(endpoint_id="x", **WHO),
            "NOT_FOUND",
            "UNKNOWN_ENDPOINT",
            "",
        ),
        ("SwitchModel", failover_pb2.SwitchModelRequest(model="x", **WHO), "NOT_FOUND", "UNKNOWN_MODEL", ""),
        (
            "SwitchModel",
            failover_pb2.SwitchModelRequest(model=EMBED, endpoint_id=CIRRUS, **WHO),
            "INVALID_ARGUMENT",
            "",
            "endpoint_id",
        ),
        ("CheckEndpoint", failover_pb2.CheckEndpointRequest(endpoint_id="x"), "NOT_FOUND", "UNKNOWN_ENDPOINT", ""),
        (
            "ListProviderHealth",
            failover_pb2.ListProviderHealthRequest(provider="x"),
            "NOT_FOUND",
            "UNKNOWN_PROVIDER",
            "",
        ),
    ],
)
async def test_f21_what_makes_no_sense_is_refused_by_name(
    quick: Service, method: str, request_: Any, code: str, reason: str, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(_admin(quick), method)(request_, timeout=DEADLINE_S)
    assert refused.value.code().name == code
    said = details(refused.value)
    assert not reason or said[ErrorInfo].reason == reason
    assert not field or field in {violation.field for violation in said[BadRequest].field_violations}
    assert await quick.history("SELECT * FROM operations") == []


async def test_f10_f19_health_moves_with_its_cause_and_says_when_and_why(
    quick: Service, providers: ProviderFleet
) -> None:
    await quick.complete()
    before = await _health(quick)
    assert before.status == failover_pb2.HEALTH_STATUS_HEALTHY
    assert before.score == 1.0
    assert before.HasField("last_success_time")
    assert not before.HasField("last_failure_time")
    assert (await _health(quick, CIRRUS)).status == failover_pb2.HEALTH_STATUS_UNKNOWN

    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", status=503))
    for failures in (1, 2):
        assert (await quick.complete()).routing.failed_over
        assert (await _health(quick)).consecutive_failures == failures

    async def lower() -> bool:
        return (await _health(quick)).score < before.score

    await until(lower)
    after = await _health(quick)
    assert after.last_error == "server_error"
    assert after.error_rate > 0
    assert after.last_failure_time.ToMicroseconds() > after.last_success_time.ToMicroseconds() > 0


async def test_f10_watchers_hear_of_a_failover_when_it_happens(quick: Service, providers: ProviderFleet) -> None:
    watch = _admin(quick).WatchProviderHealth(failover_pb2.WatchProviderHealthRequest(provider="borealis"))
    heard = aiter(watch)
    first = await anext(heard)
    assert [p.provider for p in first.providers] == ["borealis"]
    await providers.inject(Fault(kind=FaultKind.REFUSE, region="eu-west"))
    await asyncio.gather(*(quick.complete() for _ in range(12)))
    async with asyncio.timeout(DEADLINE_S):
        async for update in heard:
            if any(e.status == failover_pb2.HEALTH_STATUS_UNHEALTHY for e in update.providers[0].endpoints):
                break
    assert update.providers[0].status == failover_pb2.HEALTH_STATUS_UNHEALTHY
    listed = await _admin(quick).ListProviderHealth(failover_pb2.ListProviderHealthRequest(), timeout=DEADLINE_S)
    assert [(outage.kind, outage.name) for outage in listed.outages] == [("location", "eu-west")]
    watch.cancel()


async def test_f10_an_open_watch_does_not_hold_up_the_end_of_the_service(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    async with in_process(providers, tmp_path) as service:
        watch = _admin(service).WatchProviderHealth(failover_pb2.WatchProviderHealthRequest())
        heard = aiter(watch)
        await anext(heard)
        async with asyncio.timeout(DEADLINE_S):
            await service.history("SELECT 1")


async def test_f19_a_check_asks_the_provider_now(quick: Service, providers: ProviderFleet) -> None:
    admin, request = _admin(quick), failover_pb2.CheckEndpointRequest(endpoint_id=AURORA)
    answered = await admin.CheckEndpoint(request, timeout=DEADLINE_S)
    assert answered.outcome == routing_pb2.OUTCOME_OK
    assert answered.health.HasField("last_probe_time")
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", status=503))
    failed = await admin.CheckEndpoint(request, timeout=DEADLINE_S)
    assert failed.outcome == routing_pb2.OUTCOME_SERVER_ERROR
    assert "503" in failed.error


async def test_f21_the_shell_does_the_same(quick: Service, capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{quick.ports.grpc}"

    async def routecast(*arguments: str) -> str:
        with contextlib.suppress(SystemExit):
            await asyncio.to_thread(main, [*arguments, "--address", address])
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert f"{AURORA}: draining" in await routecast("drain", AURORA, "--reason", "test", "--operator", "ada")
    assert "draining" in await routecast("providers")
    assert f"{AURORA}: probing" in await routecast("restore", AURORA, "--reason", "test")
    assert f"switched to {CIRRUS}" in await routecast("switch", GPT4, CIRRUS, "--reason", "test")
    assert "routed by objective again" in await routecast("switch", GPT4, "--reason", "test")
    assert f"{CIRRUS}: ok after" in await routecast("check", CIRRUS)
    assert "NOT_FOUND" in await routecast("check", "nothing")
    assert '"endpoint_id"' in await routecast("providers", "--provider", "aurora", "--json")


async def test_f21_where_operators_are_named_a_change_bears_the_name_of_the_keys_owner(
    providers: ProviderFleet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = new_key(bytes(range(KEY_BYTES)))
    operators = [{"name": "ada", "api_keys": [hash_of(key, bytes(SALT_BYTES))]}]
    async with in_process(providers, tmp_path, operators=operators) as service:
        request = failover_pb2.DrainEndpointRequest(endpoint_id=AURORA, reason="test")
        admin, shown = _admin(service), (("authorization", f"Bearer {key}"),)
        for method, asked in (
            ("ListProviderHealth", failover_pb2.ListProviderHealthRequest()),
            ("CheckEndpoint", failover_pb2.CheckEndpointRequest(endpoint_id=AURORA)),
            ("DrainEndpoint", request),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await getattr(admin, method)(asked, timeout=DEADLINE_S)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await admin.DrainEndpoint(request, metadata=shown, timeout=DEADLINE_S)
        request.operator = "eve"
        with pytest.raises(grpc.aio.AioRpcError, match="the key shown belongs to"):
            await admin.DrainEndpoint(request, metadata=shown, timeout=DEADLINE_S)
        monkeypatch.setenv("ROUTECAST_OPERATOR_KEY", key)
        address = f"127.0.0.1:{service.ports.grpc}"
        with contextlib.suppress(SystemExit):
            await asyncio.to_thread(main, ["restore", AURORA, "--reason", "test", "--address", address])
        assert f"{AURORA}: probing" in capsys.readouterr().out
        rows = await service.history("SELECT operation, operator FROM operations ORDER BY time")
    assert rows == [("drain", "ada"), ("restore", "ada")]
