"""The OpenAI edge over real sockets: what passes unchanged, what is told about it, and what is refused."""

import asyncio
import base64
import json
import struct
from pathlib import Path
from typing import Any

import openai
import pytest
from yarl import URL

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.provider_kinds import OPENAI, responding
from tests.service_under_test import EMBED, GPT4, Service, config_for, in_process
from tests.wire_server import Exchange, Script, WireServer, chunk, head

SSE = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
ASKED: Any = [{"role": "user", "content": "hello"}]
CHAT = {"model": GPT4, "messages": ASKED}
RESPONSES = {"model": GPT4, "input": "hello"}
KINDS_OF_MODELS = ["chat", "streaming", "tools", "vision", "responses"]


def _with_responses(providers: ProviderFleet) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = config_for(providers, Path())["models"]
    for model in models:
        if model["id"] == GPT4:
            model["capabilities"] = KINDS_OF_MODELS
    return models


def _only(url: str, **model: Any) -> dict[str, Any]:
    """Sections of a configuration with one provider at a URL."""
    entry = {"id": GPT4, "capabilities": KINDS_OF_MODELS, "endpoints": [{"provider": "exact", "provider_model": "m"}]}
    return {"providers": [{"name": "exact", "base_url": url}], "models": [entry | model]}


async def _post(service: Service, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = URL(f"{service.url}/v1/{path}", encoded=True)
    async with service.http.post(url, data=data, headers=headers) as response:
        return response.status, {n.lower(): v for n, v in response.headers.items()}, await response.read()


# Embeddings.


async def test_embeddings_come_as_floats_and_as_base64_for_text_and_for_tokens(service: Service) -> None:
    texts = ["hello", "world"]
    floats = await service.sdk.embeddings.create(model=EMBED, input=texts, encoding_format="float")
    packed = await service.sdk.embeddings.create(model=EMBED, input=texts, encoding_format="base64")
    asked_by_default = await service.sdk.embeddings.create(model=EMBED, input=texts)
    assert [len(each.embedding) for each in floats.data] == [8, 8]
    for read, raw, default in zip(floats.data, packed.data, asked_by_default.data, strict=True):
        unpacked = struct.unpack("<8f", base64.b64decode(str(raw.embedding)))
        assert read.embedding == pytest.approx(unpacked)
        assert default.embedding == pytest.approx(unpacked)
    for tokens in ([1, 2, 3], [[1, 2], [3]]):
        answered = await service.sdk.embeddings.create(model=EMBED, input=tokens)
        assert answered.usage.prompt_tokens == 3


async def test_f17_embeddings_fail_over(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", retry_after_s=30))
    answered = await service.sdk.embeddings.with_raw_response.create(model=EMBED, input="hello")
    assert answered.headers["x-routecast-provider"] == "borealis"
    assert len(answered.parse().data[0].embedding) == 8


# The Responses API.


async def test_a_response_is_served_whole_and_streamed_and_fails_over(providers: ProviderFleet, tmp_path: Path) -> None:
    async with in_process(providers, tmp_path, models=_with_responses(providers)) as service:
        whole = await service.sdk.responses.create(model=GPT4, input="hello")
        assert whole.output_text.startswith("aurora received 1 messages")
        await providers.inject(Fault(kind=FaultKind.TRUNCATE, provider="aurora"))
        raw = await service.sdk.responses.with_raw_response.create(model=GPT4, input="hello")
        assert raw.headers["x-routecast-provider"] == "borealis"
        assert float(raw.headers["x-routecast-cost-usd"]) > 0
        await providers.clear()
        await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
        text, ended = "", None
        async with service.sdk.responses.stream(model=GPT4, input="hello") as events:
            async for event in events:
                if event.type == "response.output_text.delta":
                    text += event.delta
                ended = event
        assert ended is not None
        assert ended.type == "response.completed"
        assert text.startswith("borealis received 1 messages")


async def test_a_streamed_response_passes_byte_for_byte(providers: ProviderFleet, tmp_path: Path) -> None:
    usage = b'"usage":{"input_tokens":3,"output_tokens":2}'
    output = b'"output":[{"type":"message","content":[]}]'
    events = (
        b'event: response.created\ndata: {"type":"response.created","response":{"status":"in_progress"}}\n\n',
        b'event: response.output_text.delta\ndata: {"delta":"a","type":"response.output_text.delta", "n":1.0}\n\n',
        b'event: response.completed\ndata: {"type":"response.completed","response":{"status":"completed",'
        + output
        + b","
        + usage
        + b"}}\n\n",
    )
    async with (
        WireServer(OPENAI.streaming(*events)) as server,
        in_process(providers, tmp_path, **_only(server.url)) as service,
    ):
        status, headers, body = await _post(service, "responses", RESPONSES | {"stream": True})
        assert status == 200
        assert headers["content-type"] == "text/event-stream"
        assert body == b"".join(events)
        assert server.exchanges[0].target == "/responses"
        assert json.loads(server.exchanges[0].body) == {"model": "m", "input": "hello", "stream": True}
        rows = await service.history("SELECT method, input_tokens, output_tokens FROM requests")
        assert rows == [("stream", 3, 2)]


async def test_a_response_that_breaks_ends_with_an_error_that_sdks_raise(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    created = b'event: response.created\ndata: {"type":"response.created","response":{"status":"in_progress"}}\n\n'
    delta = (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a",'
        b'"sequence_number":1,"item_id":"i","output_index":0,"content_index":0,"logprobs":[]}\n\n'
    )
    async with (
        WireServer(OPENAI.streaming(created, delta)) as server,
        in_process(providers, tmp_path, **_only(server.url)) as service,
    ):
        _, _, body = await _post(service, "responses", RESPONSES | {"stream": True})
        last = body.removeprefix(created + delta)
        assert last.startswith(b"event: error\ndata: ")
        told = json.loads(last.removeprefix(b"event: error\ndata: "))
        assert (told["type"], told["code"], told["sequence_number"]) == ("error", "stream_broken", 2)
        stream = await service.sdk.responses.create(model=GPT4, input="hello", stream=True)
        with pytest.raises(openai.APIError, match="the stream broke"):
            _ = [event async for event in stream]


async def test_who_does_not_offer_responses_is_not_asked_for_one(service: Service) -> None:
    status, _, body = await _post(service, "responses", RESPONSES)
    assert status == 400
    assert "lacks responses" in json.loads(body)["error"]["message"]
    status, _, body = await _post(service, "responses", RESPONSES, **{"x-routecast-session": "s"})
    assert (status, json.loads(body)["error"]["param"]) == (400, "x-routecast-session")


# What passes unchanged.

FILTERS = b'{"choices":[],"created":0,"id":"","prompt_filter_results":[{"prompt_index":0}]}'
ODD_EVENTS = (
    FILTERS,
    b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}},{"index":1,"delta":{"role":"assistant"}}]}',
    b'{"choices":[{"index":1,"delta":{"content":"b"}}], "x":1.0}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":""}}]}}]}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\\u0022"}}]}}]}',
    b'{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}',
    b'{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}',
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"big":12345678901234567890}}',
)


@pytest.mark.parametrize("asked", [True, False])
async def test_f17_chunks_of_any_kind_pass_byte_for_byte(providers: ProviderFleet, tmp_path: Path, asked: bool) -> None:
    """n > 1, tool-call deltas, empty and usage-only chunks; usage alone only for those who asked."""
    sent = [b"data: " + event + b"\n\n" for event in ODD_EVENTS]
    async with (
        WireServer(OPENAI.streaming(*sent, b"data: [DONE]\n\n")) as server,
        in_process(providers, tmp_path, **_only(server.url)) as service,
    ):
        wish = {"stream_options": {"include_usage": True}} if asked else {}
        _, _, body = await _post(service, "chat/completions", {**CHAT, "n": 2, "stream": True, **wish})
    assert body == b"".join(sent if asked else sent[:-1]) + b"data: [DONE]\n\n"


async def test_an_event_of_several_lines_stays_one(providers: ProviderFleet, tmp_path: Path) -> None:
    """A server may write its JSON over several `data:` lines; the lines go out with their prefix again."""
    event = b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
    async with (
        WireServer(OPENAI.streaming(event)) as server,
        in_process(providers, tmp_path, **_only(server.url)) as service,
    ):
        _, _, body = await _post(service, "chat/completions", {**CHAT, "stream": True})
        stream = await service.sdk.chat.completions.create(model=GPT4, messages=ASKED, stream=True)
        text = "".join([each.choices[0].delta.content or "" async for each in stream])
    assert body == event + b"data: [DONE]\n\n"
    assert text == "a"


# What is told about an answer or a refusal.


async def test_an_answer_names_its_route_and_the_providers_limits(service: Service) -> None:
    _, headers, _ = await _post(service, "chat/completions", CHAT, **{"x-request-id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    assert (headers["x-routecast-provider"], headers["x-routecast-attempts"]) == ("aurora", "1")
    assert headers["x-routecast-endpoint"] == f"aurora:{GPT4}"
    assert int(headers["x-ratelimit-remaining-requests"]) < int(headers["x-ratelimit-limit-requests"])


async def test_l13_exhausted_attempts_say_when_to_come_back_and_not_to_try_at_once(
    service: Service, providers: ProviderFleet
) -> None:
    """The SDK, which retries a 429 twice by itself, obeys: our attempts are not multiplied by its own."""
    await providers.inject(
        *(Fault(kind=FaultKind.RATE_LIMIT, region=region, retry_after_s=3) for region in ("eu-west", "us-east"))
    )
    status, headers, body = await _post(service, "chat/completions", CHAT)
    assert (status, headers["retry-after"], headers["x-should-retry"]) == (429, "3", "false")
    assert headers["x-routecast-attempts"] == "3"
    error = json.loads(body)["error"]
    assert [attempt["status"] for attempt in error["attempts"]] == [429, 429, 429]
    assert {"message", "type", "param", "code"} <= set(error)


async def test_an_sdk_does_not_multiply_our_attempts(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(*(Fault(kind=FaultKind.SERVER_ERROR, region=region) for region in ("eu-west", "us-east")))
    with pytest.raises(openai.InternalServerError):
        await service.sdk.with_options(max_retries=2).chat.completions.create(model=GPT4, messages=ASKED)
    assert [len(providers.requests(name)) for name in providers.names] == [1, 1, 1]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/nothing"), ("GET", "/v1/chat/completions")])
async def test_every_refusal_has_a_request_id(service: Service, method: str, path: str) -> None:
    async with service.http.request(method, f"{service.url}{path}", headers={"x-request-id": "r-7"}) as response:
        assert response.headers["x-request-id"] == "r-7"
    async with service.http.request(method, f"{service.url}{path}") as response:
        assert len(response.headers["x-request-id"]) >= 16


# Limits.


@pytest.mark.parametrize(("depth", "status"), [(120, 200), (127, 200), (200, 400), (3_000, 400), (100_000, 400)])
async def test_json_that_is_too_deep_is_refused_by_name(service: Service, depth: int, status: int) -> None:
    nested = b'{"a":' * (depth // 2) + b"[" * (depth // 2) + b"]" * (depth // 2) + b"}" * (depth // 2)
    body = json.dumps(CHAT).encode()[:-1] + b',"x":' + nested + b"}"
    got, _, answer = await _post(service, "chat/completions", body)
    assert got == status
    if status == 400:
        assert "nested at most 128 deep" in json.loads(answer)["error"]["message"]


async def test_brackets_in_text_and_many_beside_each_other_are_not_depth(service: Service) -> None:
    odd = '[{"\\' * 500 + '\\"' + "]}" * 3 + "[" * 1000
    parts = [{"type": "text", "text": odd} for _ in range(50)]
    body = {**CHAT, "messages": [{"role": "user", "content": parts}], "logit_bias": [[n] for n in range(5_000)]}
    status, _, answer = await _post(service, "chat/completions", body)
    assert status == 200, answer


async def test_a_body_of_countless_parts_is_refused(service: Service) -> None:
    body = json.dumps(CHAT).encode()[:-1] + b',"x":[' + b"[]," * 300_000 + b"1]}"
    status, _, answer = await _post(service, "chat/completions", body)
    assert status == 400
    assert "at most 200000 parts" in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(("size", "status"), [(16_000, 200), (40_000, 431)])
async def test_headers_that_are_too_large_are_refused(service: Service, size: int, status: int) -> None:
    got, _, answer = await _post(service, "chat/completions", CHAT, **{"x-large": "x" * size})
    assert got == status
    if status == 431:
        error = json.loads(answer)["error"]
        assert (error["param"], error["type"]) == ("headers", "invalid_request_error")


async def test_a_head_without_end_is_cut_off(service: Service) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.ports.http)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Large: " + b"x" * 200_000)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.") and b" 400 " in answer[:20]  # noqa: PT018  # one status line
    writer.close()


async def test_path_and_query_are_preserved(providers: ProviderFleet, tmp_path: Path) -> None:
    """F-17."""
    answer: Script = responding(OPENAI.whole("hi"))

    async def script(exchange: Exchange) -> None:
        await answer(exchange)

    async with (
        WireServer(script) as server,
        in_process(providers, tmp_path, **_only(f"{server.url}/base/v1")) as service,
    ):
        await _post(service, "chat/completions?x=%2Fy%26z&beta=~1", CHAT)
    assert server.exchanges[0].target == "/base/v1/chat/completions?x=%2Fy%26z&beta=~1"


async def test_a_slow_reader_stops_the_provider_and_not_our_memory(providers: ProviderFleet, tmp_path: Path) -> None:
    """Backpressure: what the caller does not read is not fetched without bound."""
    sent = 0
    token = chunk(b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 64_000))

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(SSE)
        for _ in range(2_000):
            await exchange.send(token)
            sent += 1

    async with WireServer(script) as server, in_process(providers, tmp_path, **_only(server.url)) as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.ports.http, limit=2**10)
        body = json.dumps({**CHAT, "stream": True}).encode()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await reader.readuntil(b"data: ")
        before = -1
        while sent != before:  # until the provider can send no more
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 500, "some megabytes of socket buffers, not a hundred of ours"
        writer.transport.abort()
