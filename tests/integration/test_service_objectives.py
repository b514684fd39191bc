"""C-06: a caller prefers a provider, or says what it wants most, over either edge; health still comes first."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from routecast.v1 import router_pb2, routing_pb2

from sim.faults import Fault, FaultKind
from sim.provider_server import ProviderFleet
from sim.scenario import parse_scenario
from tests.service_under_test import DEADLINE_S, GPT4, Service, in_process, until

_PROVIDER = """
  - name: {name}
    region: eu
    zone: a
    ttft_ms: {ttft_ms}
    ttft_sigma: 0
    tokens_per_s: 20000
    models: [{{id: openai/gpt-4, provider_model_id: m, input_per_million_usd: {usd}, output_per_million_usd: {usd}}}]
"""
_KINDS = {"first": (120, 30), "quick": (1, 20), "cheap": (120, 2)}  # TTFT in ms, USD per million tokens
_EDGES = pytest.mark.parametrize("edge", ["grpc", "http"])


@pytest.fixture
async def fleet() -> AsyncIterator[ProviderFleet]:
    listed = [_PROVIDER.format(name=name, ttft_ms=ttft_ms, usd=usd) for name, (ttft_ms, usd) in _KINDS.items()]
    async with ProviderFleet(
        parse_scenario(f"name: kinds\nseed: 5\nduration_s: 600\nproviders:{''.join(listed)}")
    ) as f:
        yield f


@pytest.fixture
async def service(fleet: ProviderFleet, tmp_path: Path) -> AsyncIterator[Service]:
    async with in_process(fleet, tmp_path) as started:
        yield started


async def _served(service: Service, edge: str, *, objective: str = "ordered", provider: str = "") -> str:
    """Who serves one request that wishes so."""
    if edge == "grpc":
        value = routing_pb2.Objective.Value(f"OBJECTIVE_{objective.upper()}")
        return (await service.complete(objective=value, preferred_provider=provider)).routing.provider
    body = {"model": GPT4, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"x-routecast-objective": objective, "x-routecast-provider": provider}
    async with service.http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
        return response.headers["x-routecast-provider"]


@_EDGES
async def test_c06_the_preferred_provider_serves_while_it_is_well(
    service: Service, fleet: ProviderFleet, edge: str
) -> None:
    assert await _served(service, edge) == "first"
    assert [await _served(service, edge, provider="cheap") for _ in range(5)] == ["cheap"] * 5
    await fleet.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="cheap"))
    assert await _served(service, edge, provider="cheap") == "first", "a wish is no reason to fail"


@_EDGES
async def test_c06_each_objective_has_its_own_best(service: Service, edge: str) -> None:
    for provider in _KINDS:  # everybody gets a latency
        for _ in range(4):
            await _served(service, edge, provider=provider)

    async def holds() -> bool:
        return await _served(service, edge, objective="fastest") == "quick"

    await until(holds)  # ranks follow what was seen at the next tick
    assert {await _served(service, edge, objective="cheapest") for _ in range(10)} == {"cheap"}
    fastest = Counter([await _served(service, edge, objective="fastest") for _ in range(20)])
    assert fastest["quick"] >= 15, fastest


async def test_c06_who_has_failed_is_the_last_choice_of_who_wants_it_reliable(
    service: Service, fleet: ProviderFleet
) -> None:
    await fleet.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="first"))
    await _served(service, "grpc")
    await fleet.clear()
    options = routing_pb2.RoutingOptions(objective=routing_pb2.OBJECTIVE_RELIABLE)

    async def holds() -> bool:
        routed = await service.stub.Route(router_pb2.RouteRequest(model=GPT4, routing=options), timeout=DEADLINE_S)
        return routed.candidates[-1].provider == "first"

    await until(holds)  # ranks follow what was seen at the next tick
    assert {await _served(service, "http", objective="reliable") for _ in range(10)} == {"quick"}
