"""Regions over real sockets: one outage, one event, everyone elsewhere, and home again.

Proves F-13 (with a whole region out), and what callers may ask of a region on both edges.
"""

from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from routecast.v1 import routing_pb2

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import EMBED, GPT4, QUICK_RETURN, Service, details, in_process, tried, until


async def _served_by(service: Service, **options: Any) -> str:
    return (await service.complete(**options)).routing.provider


async def test_f13_a_region_out_is_one_event_and_traffic_crosses_and_returns(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Two providers of the region fail; the endpoints of another model there move before anybody calls them."""
    policy = {"reflex": {"ejection_s": 0.2, "max_ejection_s": 0.2}, "failback": QUICK_RETURN}
    async with in_process(providers, tmp_path, policy=policy) as service:
        assert await _served_by(service) == "aurora"
        await providers.inject(Fault(kind=FaultKind.REFUSE, region="eu-west"))
        crossed = await service.complete()
        assert tried(crossed.routing) == [
            ("aurora", "CONNECT_ERROR"), ("borealis", "CONNECT_ERROR"), ("cirrus", "OK"),
        ]  # fmt: skip
        assert crossed.routing.region == "us-east"

        async def moved_together() -> bool:
            reply = await service.complete()
            return tried(reply.routing) == [("cirrus", "OK")]

        await until(moved_together)
        assert set((await service.states(EMBED)).values()) == {"PROBING"}, "nobody has called them yet"

        await providers.clear()

        async def home() -> bool:
            return await _served_by(service) == "aurora" and (await service.states())["aurora"] == "ACTIVE"

        await until(home)
        events = await service.history("SELECT kind, domain, state, endpoints FROM domains ORDER BY time")
        moved = await service.history("SELECT endpoint, event, note FROM transitions WHERE event = 'domain'")
    assert [(kind, name, state) for kind, name, state, _ in events] == [
        ("location", "eu-west", "down"), ("location", "eu-west", "up"),
    ]  # fmt: skip
    assert all(
        f'"{provider}:{model}"' in events[0][3] for provider in ("aurora", "borealis") for model in (GPT4, EMBED)
    )
    assert {note for _, _, note in moved} == {"eu-west"}
    assert {endpoint for endpoint, _, _ in moved} == {f"aurora:{EMBED}", f"borealis:{EMBED}"}


async def test_f13_callers_may_prefer_a_region_or_forbid_to_leave_it(
    service: Service, providers: ProviderFleet
) -> None:
    prefer = {"region": "us-east", "region_policy": routing_pb2.REGION_POLICY_PREFER}
    stay = {"region": "us-east", "region_policy": routing_pb2.REGION_POLICY_STAY}
    assert await _served_by(service, **prefer) == "cirrus"
    assert await _served_by(service, **stay) == "cirrus"
    await providers.inject(Fault(kind=FaultKind.REFUSE, provider="cirrus"))
    assert await _served_by(service, **prefer) == "aurora"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.complete(**stay)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as wrong:
        await service.complete(region_policy=routing_pb2.REGION_POLICY_STAY)
    assert wrong.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "routing.region" in str(details(wrong.value))


async def test_f13_c06_openai_clients_say_the_same_in_headers(service: Service) -> None:
    client = openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)

    async def ask(**headers: str) -> str:
        named = {f"x-routecast-{name.replace('_', '-')}": value for name, value in headers.items()}
        raw = await client.chat.completions.with_raw_response.create(
            model=GPT4, messages=[{"role": "user", "content": "hello"}], max_tokens=100, extra_headers=named
        )
        return raw.headers["x-routecast-provider"]

    assert await ask(region="us-east", region_policy="stay") == "cirrus"
    assert await ask(max_cost_usd="0.0045") == "borealis", "100 tokens at 60 USD a million cost more"
    for name, value in (("max_cost_usd", "cheap"), ("max_cost_usd", "-1"), ("region_policy", "near")):
        with pytest.raises(openai.BadRequestError, match=name.replace("_", "-")):
            await ask(**{name: value})
    await client.close()
