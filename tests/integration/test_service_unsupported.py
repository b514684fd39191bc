"""F-02, F-07: requests that one provider's protocol cannot express go to another that can, and are no failure of
anybody; where nobody can, the caller hears which field it is.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from routecast.v1 import chat_pb2, router_pb2, routing_pb2

from sim.faults import Fault, FaultKind
from sim.provider_server import ProviderFleet
from sim.scenario import parse_scenario
from tests.service_under_test import DEADLINE_S, GPT4, Service, config_for, details, in_process, tried, user

_PROVIDER = """
  - name: {name}
    region: eu-west
    zone: eu-west-a
    wire: {wire}
    ttft_ms: 1
    ttft_sigma: 0
    tokens_per_s: 20000
    models: [{{id: openai/gpt-4, provider_model_id: m, input_per_million_usd: 10, output_per_million_usd: 10}}]
"""
_MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
SEVERAL = b'{"n":2}'


def _scenario(*wires: str) -> str:
    providers = [_PROVIDER.format(name=f"p{i}-{wire}", wire=wire) for i, wire in enumerate(wires)]
    return f"name: protocols\nseed: 3\nduration_s: 600\nproviders:{''.join(providers)}"


@pytest.fixture
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[ProviderFleet]:
    async with ProviderFleet(parse_scenario(_scenario(*request.param))) as started:
        yield started


@pytest.fixture
async def service(fleet: ProviderFleet, tmp_path: Path) -> AsyncIterator[Service]:
    providers = config_for(fleet, tmp_path)["providers"]
    for provider, spec in zip(providers, fleet.scenario.providers, strict=True):
        provider["kind"] = spec.wire.value
    policy = {"attempts": {"max_attempts": 2}}
    async with in_process(fleet, tmp_path, providers=providers, policy=policy, upstream={"prewarm": 0}) as started:
        yield started


def over(*wires: str) -> pytest.MarkDecorator:
    """Providers of these protocols, in the order they are tried."""
    return pytest.mark.parametrize("fleet", [wires], indirect=True, ids=["-".join(wires)])


def _asking_for_two(**options: Any) -> router_pb2.CompleteRequest:
    chat = chat_pb2.ChatRequest(model=GPT4, messages=[user("hello")], extra_json=SEVERAL)
    return router_pb2.CompleteRequest(chat=chat, routing=routing_pb2.RoutingOptions(**options))


@over("anthropic", "openai")
@pytest.mark.parametrize("stream", [False, True])
async def test_f02_what_one_protocol_cannot_express_another_serves(
    service: Service, fleet: ProviderFleet, stream: bool
) -> None:
    raw = service.sdk.chat.completions.with_raw_response
    answered: Any = await raw.create(model=GPT4, messages=_MESSAGES, n=2, stream=stream)
    assert answered.headers["x-routecast-provider"] == "p1-openai"
    (sent,) = fleet.requests("p1-openai")
    assert json.loads(sent.body)["n"] == 2
    assert fleet.requests("p0-anthropic") == (), "nothing was sent"
    await service.sdk.chat.completions.create(model=GPT4, messages=_MESSAGES)
    assert len(fleet.requests("p0-anthropic")) == 1, "what it can express still goes to the primary"


@over("anthropic", "anthropic", "anthropic", "openai")
async def test_f04_what_was_not_sent_uses_up_no_attempt_and_no_budget(service: Service, fleet: ProviderFleet) -> None:
    """Two attempts are allowed, and the request may not run twice: three that cannot be sent count for neither."""
    for _ in range(50):
        served = await service.stub.Complete(_asking_for_two(idempotent=False), timeout=DEADLINE_S)
        outcomes = [outcome for _, outcome in tried(served.routing)]
        assert outcomes == ["UNSUPPORTED"] * 3 + ["OK"]
    assert [len(fleet.requests(name)) for name in fleet.names] == [0, 0, 0, 50]
    assert set((await service.states()).values()) <= {"UNKNOWN", "ACTIVE"}
    rows = await service.history("SELECT bool_or(failed_over), count(*) FROM requests")
    assert rows == [(False, 50)]


@over("anthropic", "anthropic")
async def test_f07_where_nobody_can_express_it_the_field_is_named(service: Service, fleet: ProviderFleet) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await service.sdk.chat.completions.create(model=GPT4, messages=_MESSAGES, n=2)
    assert refused.value.param == "n"
    assert refused.value.code == "unsupported"
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert [a["outcome"] for a in refused.value.body["attempts"]] == ["unsupported"] * 2  # type: ignore[index]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.Complete(_asking_for_two(), timeout=DEADLINE_S)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = details(raised.value)
    assert found[ErrorInfo].reason == "UNSUPPORTED"
    (violation,) = found[BadRequest].field_violations
    assert (violation.field, violation.description) == ("n", "has no counterpart in this provider's protocol")
    assert [len(fleet.requests(name)) for name in fleet.names] == [0, 0]


@over("anthropic", "openai")
async def test_f07_who_could_express_it_and_fails_is_what_the_caller_hears_of(
    service: Service, fleet: ProviderFleet
) -> None:
    await fleet.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="p1-openai"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.Complete(_asking_for_two(), timeout=DEADLINE_S)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    report = details(raised.value)[routing_pb2.RoutingReport]
    assert tried(report) == [("p0-anthropic", "UNSUPPORTED"), ("p1-openai", "SERVER_ERROR")]


@over("anthropic", "openai")
async def test_f17_a_limit_of_who_could_express_it_comes_with_its_time(service: Service, fleet: ProviderFleet) -> None:
    await fleet.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="p1-openai", retry_after_s=30.0))
    for told in (["unsupported", "rate_limited"], ["unsupported"]):
        with pytest.raises(openai.RateLimitError) as refused:
            await service.sdk.chat.completions.create(model=GPT4, messages=_MESSAGES, n=2)
        assert [a["outcome"] for a in refused.value.body["attempts"]] == told  # type: ignore[index]
        assert 25 <= int(refused.value.response.headers["retry-after"]) <= 30
    assert len(fleet.requests("p1-openai")) == 1, "the second request met a known limit"
