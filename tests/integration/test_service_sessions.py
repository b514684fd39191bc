"""Sessions (F-05): whoever serves the next turn receives the complete conversation, byte for byte."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest
from routecast.v1 import chat_pb2

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.wire import history_digest
from tests.service_under_test import GPT4, Service, details, in_process, stream_request, user
from tests.wire_server import Exchange, WireServer

TOOL_CALL = (
    b'{"role":"assistant","content":null,"tool_calls":[{"id":"call_1","type":"function",'
    b'"function":{"name":"weather","arguments":"{\\"city\\": \\"Oslo\\"}"}}]}'
)
TOOL_RESULT = b'{"role":"tool","tool_call_id":"call_1","content":"-3.50 degrees"}'


def _raw(message: bytes) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(raw_json=message)


def _messages(providers: ProviderFleet, name: str) -> list[Any]:
    found: list[Any] = json.loads(providers.requests(name)[-1].body)["messages"]
    return found


async def test_f05_the_fallback_receives_the_complete_history(service: Service, providers: ProviderFleet) -> None:
    first = await service.complete(user("my name is Ada"), session_id="s1")
    assert first.routing.provider == "aurora"
    assert first.routing.session_id == "s1"
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
    second = await service.complete(user("who am I?"), session_id="s1")
    assert second.routing.provider == "borealis"
    received = _messages(providers, "borealis")
    assert received == [
        {"role": "user", "content": "my name is Ada"},
        json.loads(first.choices[0].message.raw_json),
        {"role": "user", "content": "who am I?"},
    ]
    # The primary had been sent the very same conversation, and the answer names what the fallback had seen.
    assert _messages(providers, "aurora") == received
    assert f"received 3 messages, digest {history_digest(received)}" in second.choices[0].message.text


async def test_f05_tool_turns_survive_the_move_byte_for_byte(service: Service, providers: ProviderFleet) -> None:
    await service.complete(user("weather?"), _raw(TOOL_CALL), _raw(TOOL_RESULT), session_id="tools")
    await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
    reply = await service.complete(user("thanks"), session_id="tools")
    assert reply.routing.provider == "borealis"
    body = providers.requests("borealis")[-1].body
    assert TOOL_CALL + b"," + TOOL_RESULT in body
    assert len(_messages(providers, "borealis")) == 5


async def test_f05_a_streamed_answer_is_part_of_the_history(service: Service, providers: ProviderFleet) -> None:
    text = ""
    async for message in service.stub.StreamComplete(stream_request(user("tell me"), session_id="s2")):
        text += "".join(delta.text for delta in message.chunk.deltas)
    await providers.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="aurora"))
    async with service.http.post(
        f"{service.url}/v1/chat/completions",
        json={"model": GPT4, "messages": [{"role": "user", "content": "go on"}], "stream": True},
        headers={"x-routecast-session": "s2"},
    ) as response:
        assert response.headers["x-routecast-provider"] == "borealis"
        await response.read()
    assert _messages(providers, "borealis") == [
        {"role": "user", "content": "tell me"},
        {"role": "assistant", "content": text},
        {"role": "user", "content": "go on"},
    ]


async def test_f05_streamed_tool_calls_are_put_together_again(providers: ProviderFleet, tmp_path: Any) -> None:
    """Deltas as a provider sends them: the call's name first, its arguments in pieces, two calls at once."""
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": None},
        {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}, {"index": 1, "function": {"arguments": "}"}}]},
    ]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    events = b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices)
    received: list[Any] = []

    async def script(exchange: Exchange) -> None:
        received.append(json.loads(exchange.body)["messages"])
        await exchange.respond(events + b"data: [DONE]\n\n", "Content-Type: text/event-stream")

    async with WireServer(script) as server:
        named = [{"name": "tools", "base_url": server.url}]
        models = [{"id": GPT4, "endpoints": [{"provider": "tools", "provider_model": "m"}]}]
        async with in_process(providers, tmp_path, providers=named, models=models) as service:
            for text in ("call both", "and?"):
                call = service.stub.StreamComplete(stream_request(user(text), session_id="s"))
                assert [message async for message in call]
    assert received[1][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}, "id": "a"},
            {"type": "function", "function": {"name": "g", "arguments": "{}"}, "id": "b"},
        ],
    }


async def test_f05_a_failed_turn_leaves_the_history_as_it_was(service: Service, providers: ProviderFleet) -> None:
    await service.complete(user("one"), session_id="s3")
    faults = [Fault(kind=FaultKind.SERVER_ERROR, region=region) for region in ("eu-west", "us-east")]
    await providers.inject(*faults)
    with pytest.raises(grpc.aio.AioRpcError):
        await service.complete(user("lost"), session_id="s3")
    await providers.clear()
    reply = await service.complete(user("two"), session_id="s3")
    assert [m["content"] for m in _messages(providers, reply.routing.provider) if m["role"] == "user"] == ["one", "two"]


async def test_f05_turns_of_one_session_wait_for_each_other(service: Service, providers: ProviderFleet) -> None:
    await asyncio.gather(*(service.complete(user(f"turn {n}"), session_id="s4") for n in range(5)))
    sizes = sorted(len(json.loads(request.body)["messages"]) for request in providers.requests("aurora"))
    assert sizes == [1, 3, 5, 7, 9]


async def test_f05_sessions_are_kept_apart(service: Service, providers: ProviderFleet) -> None:
    await service.complete(user("a"), session_id="left")
    await service.complete(user("b"), session_id="right")
    assert _messages(providers, "aurora") == [{"role": "user", "content": "b"}]


async def test_f14_a_conversation_past_its_bound_is_refused_with_the_field(
    providers: ProviderFleet, tmp_path: Any
) -> None:
    async with in_process(providers, tmp_path, sessions={"max_bytes": 1024}) as service:
        await service.complete(user("x" * 500), session_id="s")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.complete(user("x" * 500), session_id="s")
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = details(raised.value)[BadRequest].field_violations
        assert violation.field == "session_id"
        assert "expected at most 1024" in violation.description


async def test_f05_an_expired_or_crowded_out_session_starts_anew(providers: ProviderFleet, tmp_path: Any) -> None:
    async with in_process(providers, tmp_path, sessions={"max_sessions": 2}) as service:
        for name in ("first", "second", "third"):
            await service.complete(user("hi"), session_id=name)
        await service.complete(user("again"), session_id="first")
        assert len(_messages(providers, "aurora")) == 1
        await service.complete(user("again"), session_id="third")
        assert len(_messages(providers, "aurora")) == 3
