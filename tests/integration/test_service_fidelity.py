"""What a caller sends is what the provider that serves it receives, byte for byte, whoever that is (F-17)."""

import contextlib
import json
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from routecast.v1 import chat_pb2, router_pb2
from yarl import URL

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import (
    GPT4,
    Service,
    as_process,
    config_for,
    in_process,
    stream_request,
    tried,
    write_config,
)
from tests.wire_server import Exchange, WireServer

# What JSON libraries damage: integers past 2^53, floats of many digits, exponents, escapes, key order, unknown fields.
IMAGE = (
    b'{"role": "user", "content": [{"type":"text","text":"what is \\u00e9 \xf0\x9f\x8e\x89?"},'
    b' {"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo=","detail":"high"}}], "name":"ada"}'
)
TOOLS = b'[{"type":"function","function":{"name":"f","parameters":{"type":"object","x-order":[3,1,2]},"strict":true}}]'
FIELDS = {
    "seed": b"9007199254740993123",
    "top_p": b"0.30000000000000000001",
    "logit_bias": b'{"50256":-1e2}',
    "tools": TOOLS,
    "x_unknown": b'{"b":1.0,"a":[null,true,1E-7]}',
}


def _fields(body: bytes) -> dict[str, bytes]:
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


def _object(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in fields.items()) + b"}"


async def _limit_primary(providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", retry_after_s=30))


async def test_f17_429_from_the_primary_is_served_by_the_secondary_over_http(
    service: Service, providers: ProviderFleet
) -> None:
    """As an OpenAI client sees it: 200 with choices; and the decision log explains it."""
    await _limit_primary(providers)
    answer = await service.sdk.chat.completions.with_raw_response.create(
        model="openai/gpt-4", messages=[{"role": "user", "content": "hello"}]
    )
    assert answer.status_code == 200
    choice = answer.parse().choices[0]
    assert (choice.message.content or "").startswith("borealis received 1 messages")
    assert answer.headers["x-routecast-provider"] == "borealis"
    assert answer.headers["x-routecast-attempts"] == "2"
    assert float(answer.headers["x-routecast-cost-usd"]) > 0

    explained = await service.explain(answer.headers["x-routecast-decision"])
    (primary,) = (c for c in explained.candidates if c.provider == "aurora")
    assert primary.exclusion == "already tried for this request"
    assert explained.chosen_endpoint_id == explained.candidates[0].endpoint_id

    # The next request does not even ask the primary, and the log says why.
    asked = len(providers.requests("aurora"))
    following = await service.complete()
    assert tried(following.routing) == [("borealis", "OK")]
    assert len(providers.requests("aurora")) == asked
    explained = await service.explain(following.routing.attempts[0].decision_id)
    (primary,) = (c for c in explained.candidates if c.provider == "aurora")
    assert primary.exclusion.startswith("rate limited until")
    assert "rate limited until" in explained.summary

    attempts = "SELECT number, provider, outcome, http_status FROM attempts ORDER BY time LIMIT 2"
    assert await service.history(attempts) == [(1, "aurora", "rate_limited", 429), (2, "borealis", "ok", 200)]
    moves = "SELECT provider, to_state, event, metric FROM transitions WHERE event = 'limited'"
    assert await service.history(moves) == [("aurora", "degraded", "limited", "retry_after_s")]
    decided = "SELECT count(*), count(DISTINCT request_id), min(propensity) > 0 FROM decisions"
    assert await service.history(decided) == [(3, 2, True)]


async def test_f17_the_body_arrives_byte_for_byte_over_http(service: Service, providers: ProviderFleet) -> None:
    await _limit_primary(providers)
    body = _object({"model": b'"openai\\/gpt-4"', **FIELDS, "messages": b"[ " + IMAGE + b" ]"})
    headers = {
        "authorization": "Bearer the-callers-own",
        "openai-beta": "assistants=v2",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "idempotency-key": "once",
        "x-request-id": "req-17",
        "cookie": "secret=1",
        "content-type": "application/json",
    }
    path = "/v1/chat/completions?api-version=2024-06-01&x=%2Fy%26z%20w"
    url = URL(f"{service.url}{path}", encoded=True)
    async with service.http.post(url, data=body, headers=headers) as response:
        assert response.status == 200
        assert response.headers["x-request-id"] == "req-17"
    for name, model in (("aurora", b'"openai/gpt-4"'), ("borealis", b'"gpt-4"')):
        received = providers.requests(name)[-1]
        assert received.method == "POST"
        assert received.path == path
        assert _fields(received.body) == {"model": model, **FIELDS, "messages": b"[ " + IMAGE + b" ]"}
        sent = {key.lower(): value for key, value in received.headers}
        for kept in ("openai-beta", "traceparent", "x-request-id"):
            assert sent[kept] == headers[kept]
        assert "idempotency-key" not in sent, "each tenant has its own keys, but providers see one account"
        assert "authorization" not in sent, "the caller's key is for us"
        assert "cookie" not in sent


async def test_f17_the_body_arrives_byte_for_byte_over_grpc(service: Service, providers: ProviderFleet) -> None:
    await _limit_primary(providers)
    chat = chat_pb2.ChatRequest(
        model=GPT4,
        messages=[
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, text='quote " and \\ and é'),
            chat_pb2.ChatMessage(raw_json=IMAGE),
        ],
        temperature=0.1,
        max_output_tokens=7,
        extra_json=_object(FIELDS),
    )
    reply = await service.stub.Complete(router_pb2.CompleteRequest(chat=chat))
    assert tried(reply.routing) == [("aurora", "RATE_LIMITED"), ("borealis", "OK")]
    received = _fields(providers.requests("borealis")[-1].body)
    assert {name: received[name] for name in FIELDS} == FIELDS
    assert IMAGE in received["messages"]
    assert json.loads(received["messages"])[0] == {"role": "system", "content": 'quote " and \\ and é'}
    assert (received["temperature"], received["max_tokens"], received["model"]) == (b"0.1", b"7", b'"gpt-4"')
    assert "stream" not in received


async def test_f17_the_answer_comes_back_byte_for_byte(providers: ProviderFleet, tmp_path: Path) -> None:
    answer = (
        b'{ "id":"x","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"1"}],'
        b'"reasoning":"hm"},"finish_reason":"tool_calls","logprobs":{"v":0.10000000000000000555}}],'
        b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5},"big":12345678901234567890, "n":1.0 }'
    )
    event = answer.replace(b'"message"', b'"delta"')

    async def script(exchange: Exchange) -> None:
        if b'"stream":true' in exchange.body:
            await exchange.respond(b"data: " + event + b"\n\ndata: [DONE]\n\n", "Content-Type: text/event-stream")
        else:
            await exchange.respond(answer, "Content-Type: application/json", "x-ratelimit-remaining-requests: 9")

    async with WireServer(script) as server:
        sections: dict[str, Any] = {
            "providers": [{"name": "exact", "base_url": server.url}],
            "models": [{"id": GPT4, "endpoints": [{"provider": "exact", "provider_model": "m"}]}],
        }
        async with in_process(providers, tmp_path, **sections) as service:
            reply = await service.complete()
            body = {"model": GPT4, "messages": [{"role": "user", "content": "x"}]}
            url = f"{service.url}/v1/chat/completions"
            async with (
                service.http.post(url, json=body) as whole,
                service.http.post(url, json=body | {"stream": True}) as streamed,
            ):
                assert await whole.read() == answer
                assert whole.headers["x-ratelimit-remaining-requests"] == "9"
                assert await streamed.read() == b"data: " + event + b"\n\ndata: [DONE]\n\n"
    assert reply.raw_json == answer
    assert reply.choices[0].finish_reason == "tool_calls"
    assert b'"reasoning":"hm"' in reply.choices[0].message.raw_json
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 2)


ODD_CHOICE: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}


@pytest.mark.parametrize(
    "odd",
    [
        {"id": None, "model": None},
        {"id": 7, "created": "now"},
        {
            "choices": [
                ODD_CHOICE | {"message": {"role": None, "content": "hi"}, "delta": {"role": None, "content": "hi"}}
            ]
        },
        {"usage": {"prompt_tokens": "many"}},
    ],
)
async def test_f17_answers_of_odd_shape_reach_a_grpc_caller_all_the_same(
    providers: ProviderFleet, tmp_path: Path, odd: dict[str, Any]
) -> None:
    """Servers take liberties with fields that routing does not need; `raw_json` carries them."""
    said = {"role": "assistant", "content": "hi"}
    body = {"id": "x", "model": "m", "choices": [ODD_CHOICE | {"message": said, "delta": said}]} | odd
    answer = json.dumps(body).encode()

    async def script(exchange: Exchange) -> None:
        if b'"stream":true' in exchange.body:
            await exchange.respond(b"data: " + answer + b"\n\ndata: [DONE]\n\n", "Content-Type: text/event-stream")
        else:
            await exchange.respond(answer, "Content-Type: application/json")

    async with WireServer(script) as server:
        sections: dict[str, Any] = {
            "providers": [{"name": "odd", "base_url": server.url}],
            "models": [{"id": GPT4, "endpoints": [{"provider": "odd", "provider_model": "m"}]}],
        }
        async with in_process(providers, tmp_path, **sections) as service:
            assert (await service.complete(session_id="s")).raw_json == answer
            messages = [message async for message in service.stub.StreamComplete(stream_request(session_id="s"))]
    assert [message.chunk.raw_json for message in messages[:-1]] == [answer]


async def test_an_answer_that_surprises_the_service_is_still_accounted_for(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Whatever goes wrong, an attempt that was begun is ended: else it would count as in flight for ever."""
    event = b'{"choices":[{"index":0,"delta":{"tool_calls":["what?"]},"finish_reason":"stop"}]}'

    async def script(exchange: Exchange) -> None:
        await exchange.respond(b"data: " + event + b"\n\ndata: [DONE]\n\n", "Content-Type: text/event-stream")

    async with WireServer(script) as server:
        sections: dict[str, Any] = {
            "providers": [{"name": "odd", "base_url": server.url}],
            "models": [{"id": GPT4, "endpoints": [{"provider": "odd", "provider_model": "m"}]}],
        }
        async with in_process(providers, tmp_path, **sections) as service:
            with contextlib.suppress(grpc.aio.AioRpcError):
                _ = [message async for message in service.stub.StreamComplete(stream_request(session_id="s"))]
            assert await service.history("SELECT count(*) FROM attempts") == [(1,)]


async def test_f17_a_providers_refusal_of_the_request_passes_through(service: Service) -> None:
    """Nobody else is asked: the request is wrong for everyone, in the provider's own words."""
    body = {"model": GPT4, "messages": [{"role": "user", "content": 7}]}
    async with service.http.post(f"{service.url}/v1/chat/completions", json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == "messages[0].content"
    assert await service.history("SELECT status, attempts FROM requests") == [("UPSTREAM_REJECTED", 1)]


@pytest.mark.parametrize("client", ["aiohttp", "httpx"])
async def test_keys_go_to_their_provider_and_nowhere_else(
    providers: ProviderFleet, tmp_path: Path, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C-01: not into errors, not into the log, not into the history, even when the provider echoes them."""
    key = "sk-very-secret-0123456789"
    seen: list[list[str]] = []

    async def echo(exchange: Exchange) -> None:
        seen.append(exchange.header("authorization"))
        said = json.dumps({"error": {"message": f"bad key {key}", "code": "invalid_api_key"}}).encode()
        await exchange.respond(said, "Content-Type: application/json", status="401 Unauthorized")

    monkeypatch.setenv("ECHO_KEY", key)
    async with WireServer(echo) as server:
        tree = config_for(providers, tmp_path / "data", log_level="debug", upstream={"client": client})
        tree["providers"].append({"name": "echo", "base_url": server.url, "api_key": "${ECHO_KEY}"})
        tree["models"] = [{"id": GPT4, "endpoints": [{"provider": "echo", "provider_model": "m"}]}]
        async with as_process(write_config(tmp_path / "routecast.yaml", tree)) as service:
            async with service.http.post(
                f"{service.url}/v1/chat/completions",
                json={"model": GPT4, "messages": [{"role": "user", "content": "x"}]},
            ) as response:
                text, status = await response.text(), response.status
            assert await service.end() == 0
    assert seen == [[f"Bearer {key}"]]
    assert status == 503
    assert key not in text
    assert "***" in text
    assert key not in "".join(service.errors)
    assert not any(key.encode() in path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
