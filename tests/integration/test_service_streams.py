"""Streams: failover that nobody sees before the first token, honest ends after it, nothing left running."""

import asyncio
import json
from typing import Any

import aiohttp
import grpc
import openai
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from routecast.v1 import routing_pb2

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import GPT4, Service, details, in_process, stream_request, tried, until, user

HELLO: Any = [{"role": "user", "content": "hello"}]
BODY = {"model": GPT4, "messages": HELLO, "stream": True}
LONG = b'{"min_tokens": 400}'


async def _collect(call: Any) -> tuple[str, list[Any]]:
    text, reports = "", []
    async for message in call:
        if message.WhichOneof("event") == "report":
            reports.append(message.report)
        else:
            assert not reports, "the report comes last"
            text += "".join(delta.text for delta in message.chunk.deltas)
    return text, reports


async def _events(response: aiohttp.ClientResponse) -> list[str]:
    text = (await response.read()).decode()
    assert text.endswith("\n\n")
    return [event.removeprefix("data: ") for event in text.split("\n\n")[:-1]]


async def test_a_stream_arrives_token_by_token_and_ends_with_its_report(service: Service) -> None:
    text, (report,) = await _collect(service.stub.StreamComplete(stream_request()))
    assert text.startswith("aurora received 1 messages")
    assert tried(report) == [("aurora", "OK")]
    assert report.cost_usd > 0

    stream = await service.sdk.chat.completions.create(model=GPT4, messages=HELLO, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"
    rows = await service.history("SELECT method, edge, ttft_ms > 0, output_tokens > 0 FROM requests ORDER BY time")
    assert rows == [("stream", "grpc", True, True), ("stream", "http", True, True)]


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (FaultKind.SERVER_ERROR, "SERVER_ERROR"),
        (FaultKind.RATE_LIMIT, "RATE_LIMITED"),
        (FaultKind.REFUSE, "CONNECT_ERROR"),
        (FaultKind.RESET, "TRUNCATED"),
    ],
)
async def test_a_failover_before_the_first_token_is_invisible(
    service: Service, providers: ProviderFleet, kind: FaultKind, outcome: str
) -> None:
    await providers.inject(Fault(kind=kind, provider="aurora"))
    text, (report,) = await _collect(service.stub.StreamComplete(stream_request()))
    assert text.startswith("borealis received 1 messages")
    assert tried(report) == [("aurora", outcome), ("borealis", "OK")]
    async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY) as response:
        assert response.status == 200
        assert response.headers["x-routecast-provider"] == "borealis"
        events = await _events(response)
    assert events[-1] == "[DONE]"
    assert not any("aurora" in event for event in events)


async def test_a_provider_that_sends_headers_and_no_token_is_left_in_time(
    providers: ProviderFleet, tmp_path: Any
) -> None:
    attempts = {"ttft_timeout_s": 0.2, "stall_timeout_s": 5, "deadline_s": 20, "reserve_s": 5}
    async with in_process(providers, tmp_path, policy={"attempts": attempts}) as service:
        await providers.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
        text, (report,) = await _collect(service.stub.StreamComplete(stream_request()))
    assert text.startswith("borealis")
    assert tried(report) == [("aurora", "TIMEOUT"), ("borealis", "OK")]


@pytest.mark.parametrize(("kind", "outcome"), [(FaultKind.TRUNCATE, "TRUNCATED"), (FaultKind.MALFORMED, "MALFORMED")])
async def test_a_stream_that_breaks_says_so_and_never_looks_whole(
    providers: ProviderFleet, tmp_path: Any, kind: FaultKind, outcome: str
) -> None:
    patient = {"reflex": {"false_alarm_every_s": 1e12}}
    async with in_process(providers, tmp_path, policy=patient) as service:
        await _breaks_openly(service, providers, kind, outcome)


async def _breaks_openly(service: Service, providers: ProviderFleet, kind: FaultKind, outcome: str) -> None:
    await providers.inject(Fault(kind=kind, provider="aurora"))
    call = service.stub.StreamComplete(stream_request(extra=LONG))
    received = []
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        received = [message async for message in call]
    assert received == []
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    found = details(raised.value)
    assert found[ErrorInfo].reason == "STREAM_BROKEN"
    assert RetryInfo in found
    assert tried(found[routing_pb2.RoutingReport]) == [("aurora", outcome)]

    async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY | {"min_tokens": 400}) as response:
        assert response.status == 200
        events = await _events(response)
    assert "[DONE]" not in events
    first, last = json.loads(events[0]), json.loads(events[-1])
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert last["error"]["code"] == "stream_broken"
    assert [a["outcome"] for a in last["error"]["attempts"]] == [outcome.lower()]

    with pytest.raises(openai.APIError, match="the stream broke"):
        async for _ in await service.sdk.chat.completions.create(
            model=GPT4, messages=HELLO, stream=True, extra_body={"min_tokens": 400}
        ):
            pass
    rows = await service.history("SELECT DISTINCT status, endpoint, attempts FROM requests")
    assert rows == [("STREAM_BROKEN", "", 1)]


async def test_a_stream_that_stalls_is_ended(providers: ProviderFleet, tmp_path: Any) -> None:
    async with in_process(providers, tmp_path, policy={"attempts": {"stall_timeout_s": 0.2}}) as service:
        await providers.inject(Fault(kind=FaultKind.STALL, provider="aurora"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _collect(service.stub.StreamComplete(stream_request(extra=LONG)))
        assert tried(details(raised.value)[routing_pb2.RoutingReport]) == [("aurora", "STALLED")]
        await providers.until(lambda: providers.stats("aurora").in_flight == 0)


@pytest.mark.parametrize("edge", ["grpc", "http", "sdk"])
async def test_a_caller_who_leaves_takes_the_upstream_call_along(
    service: Service, providers: ProviderFleet, edge: str
) -> None:
    await providers.inject(Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.001))
    match edge:
        case "grpc":
            call = service.stub.StreamComplete(stream_request(extra=LONG))
            await call.read()
            call.cancel()
        case "http":
            response = await service.http.post(f"{service.url}/v1/chat/completions", json=BODY | {"min_tokens": 400})
            await response.content.readany()
            response.close()
        case _:
            stream = await service.sdk.chat.completions.create(
                model=GPT4, messages=HELLO, stream=True, extra_body={"min_tokens": 400}
            )
            await anext(aiter(stream))
            await stream.close()
    await providers.until(lambda: providers.stats("aurora").outcomes.get("cancelled", 0) == 1)
    assert providers.stats("aurora").in_flight == 0
    rows = await service.history("SELECT outcome, http_status FROM attempts")
    assert rows == [("cancelled", None)]


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_a_caller_who_leaves_before_the_answer_takes_the_upstream_call_along(
    service: Service, providers: ProviderFleet, edge: str
) -> None:
    await providers.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
    if edge == "grpc":
        asking = asyncio.create_task(service.complete())
    else:
        body = {"model": GPT4, "messages": HELLO}
        posting = service.http.post(f"{service.url}/v1/chat/completions", json=body)
        asking = asyncio.create_task(posting.__aenter__())  # type: ignore[arg-type]
    await providers.until(lambda: providers.stats("aurora").in_flight == 1)
    asking.cancel()
    await providers.until(lambda: providers.stats("aurora").in_flight == 0)
    await asyncio.gather(asking, return_exceptions=True)
    assert len(providers.requests("borealis")) == 0
    assert await service.history("SELECT status, attempts FROM requests") == [("CANCELLED", 1)]


@pytest.mark.parametrize("asked", [True, False])
async def test_the_usage_chunk_goes_to_those_who_asked(service: Service, providers: ProviderFleet, asked: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if asked else {}
    async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY | options) as response:
        events = await _events(response)
    usage_only = [e for e in events if e != "[DONE]" and not json.loads(e)["choices"]]
    assert len(usage_only) == int(asked)
    assert events[-1] == "[DONE]"
    sent = json.loads(providers.requests("aurora")[-1].body)
    assert sent["stream_options"] == {"include_usage": True}, "our own accounting needs it either way"
    rows = await service.history("SELECT input_tokens > 0, output_tokens > 0, cost_usd > 0 FROM requests")
    assert rows == [(True, True, True)]


async def test_hundreds_of_streams_do_not_mix_and_leave_nothing(service: Service, providers: ProviderFleet) -> None:
    async def one(number: int) -> None:
        text, (report,) = await _collect(service.stub.StreamComplete(stream_request(user(f"number {number}"))))
        assert text.endswith(f"last asked: number {number}")
        assert report.provider == "aurora"

    await asyncio.gather(*(one(number) for number in range(200)))
    stats = providers.stats("aurora")
    assert (stats.in_flight, stats.outcomes) == (0, {"ok": 200})

    async def idle() -> bool:
        async with service.http.get(f"{service.url}/metrics") as response:
            text = await response.text()
        return 'routecast_requests_total{edge="grpc",method="stream",model="openai/gpt-4",status="ok"} 200.0' in text

    await until(idle)
