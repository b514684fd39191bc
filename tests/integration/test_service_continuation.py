"""Streams that break in the middle and go on elsewhere, for callers who asked: plain text, marked, and nothing else.

The default stays the honest end of test_service_streams.py.
"""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from routecast.v1 import routing_pb2

from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import DONE, STREAM_HEAD, Upstream, answer, break_after, event, refuse, scripted
from tests.service_under_test import GPT4, Service, details, stream_request, tried, user
from tests.wire_server import Exchange

BODY: dict[str, Any] = {"model": GPT4, "messages": [{"role": "user", "content": "count"}], "stream": True}
ASKED = {"x-routecast-continue": "true"}
PATIENT = {"reflex": {"false_alarm_every_s": 1e12}}


async def _over_http(service: Service, **body: Any) -> tuple[str, list[dict[str, Any]], str]:
    """Return the text, every event as JSON, and the raw stream."""
    async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY | body, headers=ASKED) as response:
        assert response.status == 200
        raw = (await response.read()).decode()
    events = [json.loads(e[6:]) for e in raw.split("\n\n") if e.startswith("data: {")]
    deltas = [choice["delta"] for e in events for choice in e.get("choices", ())]
    return "".join(delta.get("content", "") for delta in deltas), events, raw


async def _finish(exchange: Exchange, *texts: str) -> None:
    await exchange.send(*(event(text) for text in texts), event(finish="stop"), DONE)


async def test_f11_a_plain_text_that_breaks_goes_on_from_the_next_endpoint(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        first, second = upstreams["first"], upstreams["second"]
        first.script = break_after("one ", "two ", "th")

        async def rest(exchange: Exchange) -> None:
            opening = event(choices=[{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])
            await exchange.send(STREAM_HEAD, opening)
            await _finish(exchange, "ree ", "four")

        second.script = rest
        text, events, raw = await _over_http(service, max_tokens=100)
        assert text == "one two three four"
        assert raw.endswith("data: [DONE]\n\n")
        marks = [line for line in raw.split("\n") if line.startswith(":")]
        assert len(marks) == 1
        assert json.loads(marks[0].removeprefix(": x-routecast-continued ")) == {
            "endpoint": f"second:{GPT4}", "provider": "second", "attempt": 2,
        }  # fmt: skip
        assert sum("role" in c["delta"] for e in events for c in e["choices"]) == 0, "one opening, the first provider's"

        (asked,) = second.bodies
        assert asked["messages"][0] == BODY["messages"][0]
        assert asked["messages"][1] == {"role": "assistant", "content": "one two th"}
        assert asked["messages"][2]["role"] == "user"
        assert asked["max_tokens"] == 100 - len("one two th") // 4
        rows = await service.history("SELECT status, endpoint, attempts, failed_over FROM requests")
    assert rows == [("ok", f"second:{GPT4}", 2, True)]


async def test_a_grpc_caller_sees_where_the_stream_goes_on(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        upstreams["second"].script = lambda exchange: answer(exchange, "two")
        call = service.stub.StreamComplete(stream_request(continue_stream=True))
        kinds, text, report = [], "", routing_pb2.RoutingReport()
        async for message in call:
            kinds.append(message.WhichOneof("event"))
            if kinds[-1] == "continued":
                assert (message.continued.provider, message.continued.attempt_number) == ("second", 2)
            elif kinds[-1] == "report":
                report = message.report
            else:
                text += "".join(delta.text for delta in message.chunk.deltas)
        assert text == "one two"
        assert kinds.index("continued") == 1
        assert kinds[-1] == "report"
        assert tried(report) == [("first", "TRUNCATED"), ("second", "OK")]


async def test_f05_a_session_keeps_the_whole_answer(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        upstreams["second"].script = lambda exchange: answer(exchange, "two")
        call = service.stub.StreamComplete(stream_request(user("count"), continue_stream=True, session_id="s"))
        _ = [message async for message in call]
        upstreams["first"].script = answer
        await service.complete(user("go on"), session_id="s")
        (asked,) = [b for u in upstreams.values() for b in u.bodies if b["messages"][-1]["content"] == "go on"]
    assert [m["content"] for m in asked["messages"]] == ["count", "one two", "go on"]


async def test_a_text_may_break_more_than_once(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", "third", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        upstreams["second"].script = break_after("two ")
        upstreams["third"].script = lambda exchange: answer(exchange, "three")
        text, _, raw = await _over_http(service)
        assert text == "one two three"
        assert raw.count(": x-routecast-continued") == 2
        assert upstreams["third"].bodies[0]["messages"][1]["content"] == "one two "


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
    ],
)
async def test_what_is_no_plain_text_is_never_continued(
    providers: ProviderFleet, tmp_path: Path, body: dict[str, Any]
) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        text, events, raw = await _over_http(service, **body)
        assert text == "one "
        assert events[-1]["error"]["code"] == "stream_broken"
        assert "[DONE]" not in raw
        assert upstreams["second"].bodies == []


async def test_an_answer_that_is_more_than_text_is_not_continued(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}

        async def calls(exchange: Exchange) -> None:
            delta = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
            await exchange.send(STREAM_HEAD, event("one "), event(choices=[delta]))
            exchange.close()

        upstreams["first"].script = calls
        _, events, _ = await _over_http(service)
        assert events[-1]["error"]["code"] == "stream_broken"
        assert upstreams["second"].bodies == []


async def test_f04_a_request_that_must_not_run_twice_is_not_continued(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        call = service.stub.StreamComplete(stream_request(continue_stream=True, idempotent=False))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            _ = [message async for message in call]
        assert details(raised.value)[ErrorInfo].reason == "STREAM_BROKEN"
        assert upstreams["second"].bodies == []


async def test_f07_when_nobody_can_go_on_the_stream_ends_openly(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        upstreams["second"].script = refuse("503 Service Unavailable")
        call = service.stub.StreamComplete(stream_request(continue_stream=True))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            _ = [message async for message in call]
        found = details(raised.value)
        assert found[ErrorInfo].reason == "STREAM_BROKEN"
        assert tried(found[routing_pb2.RoutingReport]) == [("first", "TRUNCATED"), ("second", "SERVER_ERROR")]
        assert "could not be continued" in (raised.value.details() or "")


async def test_a_caller_who_leaves_a_continued_stream_takes_the_upstream_call_along(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    async with scripted(providers, tmp_path, "first", "second", policy=PATIENT) as (service, upstreams):
        upstreams["first"].script = break_after("one ")
        second: Upstream = upstreams["second"]

        async def endless(exchange: Exchange) -> None:
            await exchange.send(STREAM_HEAD, event("two "))
            await exchange.gone()

        second.script = endless
        call = service.stub.StreamComplete(stream_request(continue_stream=True))
        async for message in call:
            if message.WhichOneof("event") == "continued":
                break
        await second.until_open(1)
        call.cancel()
        await second.until_open(0)
        rows = await service.history("SELECT provider, outcome FROM attempts ORDER BY number")
    assert rows == [("first", "truncated"), ("second", "cancelled")]
