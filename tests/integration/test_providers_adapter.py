"""Every adapter over every transport: against the simulated provider, and raw sockets for what that cannot send."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import msgspec
import pytest

from routing.model import Capability, Endpoint
from routing.outcomes import Outcome
from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.base import Adapter, AttemptFailed, Call, Chunk, Failure, Operation
from service.providers.httpx_transport import HttpxTransport
from service.providers.openai_compatible import OpenAICompatible
from service.providers.transport import Timeouts, Transport
from sim.faults import FaultKind
from sim.openai_wire import history_digest
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario
from tests.wire_server import DEADLINE_S, Exchange, Script, WireServer, chunk, head

KEY = "sk-very-secret-key"
SCENARIO = f"""
name: adapters
seed: 7
duration_s: 60
providers:
  - name: aurora
    region: eu-west
    zone: eu-west-a
    ttft_ms: 1
    tokens_per_s: 20000
    api_key: {KEY}
    models:
      - {{id: openai/gpt-4, provider_model_id: gpt-4-aurora}}
      - {{id: openai/embed, provider_model_id: embed-aurora, kind: embeddings, dimensions: 8}}
"""
PATIENT = Timeouts(connect_s=DEADLINE_S, first_byte_s=DEADLINE_S, stall_s=DEADLINE_S)
HASTY = Timeouts(connect_s=DEADLINE_S, first_byte_s=0.2, stall_s=0.2)
MESSAGES = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}]
SSE = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked", "X-Request-Id: r7", "X-Hidden: 1")
JSON = "Content-Type: application/json"
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'

MakeAdapter = Callable[[str, Transport], Adapter]


def _openai_compatible(base_url: str, transport: Transport) -> Adapter:
    return OpenAICompatible(base_url, transport, api_key=KEY, headers={"X-Team": "t"}, clock=lambda: 1_000.0)


@pytest.fixture(params=[AiohttpTransport, HttpxTransport])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    make: Callable[[], AiohttpTransport | HttpxTransport] = request.param
    async with make() as made:
        yield made


@pytest.fixture(params=[_openai_compatible])
def make(request: pytest.FixtureRequest) -> MakeAdapter:
    made: MakeAdapter = request.param
    return made


@pytest.fixture
async def fleet() -> AsyncIterator[ProviderFleet]:
    async with ProviderFleet(parse_scenario(SCENARIO)) as running:
        yield running


@pytest.fixture
def adapter(make: MakeAdapter, transport: Transport, fleet: ProviderFleet) -> Adapter:
    return make(fleet.url("aurora"), transport)


def _endpoint(provider_model: str = "gpt-4-aurora", capability: Capability = Capability.CHAT) -> Endpoint:
    return Endpoint("aurora/x", "aurora", "eu-west", "a", "openai/x", provider_model, 0, frozenset({capability}))


def _call(*, stream: bool = False, operation: Operation = Operation.CHAT, body: str = "", **fields: object) -> Call:
    raw = body or json.dumps({"model": "openai/gpt-4", "messages": MESSAGES, **fields})
    return Call(operation, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), stream, request_id="q1")


async def _stream(adapter: Adapter, call: Call, timeouts: Timeouts = PATIENT) -> list[Chunk]:
    async with aclosing(adapter.stream(call, _endpoint(), timeouts)) as chunks:
        return [chunk async for chunk in chunks]


async def _fail(adapter: Adapter, *, stream: bool = False, timeouts: Timeouts = PATIENT) -> Failure:
    asked = _stream(adapter, _call(stream=True), timeouts) if stream else adapter.send(_call(), _endpoint(), timeouts)
    with pytest.raises(AttemptFailed) as failed:
        await asked
    failure = failed.value.failure
    assert KEY not in f"{failed.value!r} {failure!r} {failure.body!r}"
    return failure


def _answering(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.respond(body, JSON, *headers, status=status)

    return script


def _streaming(*events: bytes, ended: bool = True) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE, *(chunk(event) for event in events))
        if ended:
            await exchange.send(chunk(b""))
        else:
            await exchange.gone()

    return script


async def test_a_chat_is_answered_and_the_whole_history_arrived(adapter: Adapter) -> None:
    """F-05."""
    reply = await adapter.send(_call(), _endpoint(), PATIENT)
    answer = json.loads(reply.body)
    assert history_digest(MESSAGES) in answer["choices"][0]["message"]["content"]
    assert (reply.status, reply.input_tokens, reply.output_tokens) == (
        200,
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
    )
    assert reply.headers["x-request-id"].startswith("req_aurora_")
    assert "x-ratelimit-remaining-requests" in reply.headers
    assert "date" not in reply.headers


async def test_a_stream_gives_the_same_answer_as_it_arrives(adapter: Adapter, fleet: ProviderFleet) -> None:
    whole = json.loads((await adapter.send(_call(), _endpoint(), PATIENT)).body)
    chunks = await _stream(adapter, _call(stream=True))
    read = [json.loads(chunk.data) for chunk in chunks]
    text = "".join(choice["delta"].get("content") or "" for event in read for choice in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert [chunk.has_content for chunk in chunks[:2]] == [False, True]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert (chunks[-1].input_tokens, chunks[-1].output_tokens) == tuple(
        whole["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )
    assert [chunk.usage_requested for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [bool(chunk.headers) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert fleet.stats("aurora").outcomes == {"ok": 2}


async def test_a_caller_that_asked_for_usage_gets_the_chunk(adapter: Adapter) -> None:
    chunks = await _stream(adapter, _call(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage_requested for chunk in chunks)
    assert chunks[-1].output_tokens is not None


async def test_embeddings_are_answered(adapter: Adapter) -> None:
    call = _call(operation=Operation.EMBEDDINGS, body='{"input":["a","b"],"model":"openai/embed"}')
    reply = await adapter.send(call, _endpoint("embed-aurora"), PATIENT)
    assert len(json.loads(reply.body)["data"]) == 2
    assert (reply.input_tokens, reply.output_tokens) == (2, None)


async def test_models_are_listed_and_probes_are_cheap(adapter: Adapter) -> None:
    assert [model.id for model in await adapter.list_models(PATIENT)] == ["gpt-4-aurora", "embed-aurora"]
    assert (await adapter.probe(_endpoint(), PATIENT)).output_tokens == 1
    embedding = await adapter.probe(_endpoint("embed-aurora", Capability.EMBEDDINGS), PATIENT)
    assert embedding.input_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", retry_after_s=1.5), Outcome.RATE_LIMITED),
        (Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", status=529), Outcome.SERVER_ERROR),
        (Fault(kind=FaultKind.REFUSE, provider="aurora"), Outcome.CONNECT_ERROR),
        (Fault(kind=FaultKind.RESET, provider="aurora"), Outcome.TRUNCATED),
        (Fault(kind=FaultKind.HANG, provider="aurora"), Outcome.TIMEOUT),
        (Fault(kind=FaultKind.TRUNCATE, provider="aurora"), Outcome.TRUNCATED),
        (Fault(kind=FaultKind.STALL, provider="aurora"), Outcome.STALLED),
        (Fault(kind=FaultKind.MALFORMED, provider="aurora"), Outcome.MALFORMED),
    ],
)
async def test_each_fault_has_its_outcome_and_leaves_nothing_open(
    adapter: Adapter, fleet: ProviderFleet, stream: bool, fault: Fault, outcome: Outcome
) -> None:
    """F-01: the classes that detection works on; F-17: a 429 says when to come back."""
    await fleet.inject(fault)
    waits = outcome in (Outcome.TIMEOUT, Outcome.STALLED)
    failure = await _fail(adapter, stream=stream, timeouts=HASTY if waits else PATIENT)
    assert failure.outcome is outcome
    assert failure.error
    assert failure.retry_after_s == (1.5 if outcome is Outcome.RATE_LIMITED else None)
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 0)
    await fleet.clear()
    assert (await adapter.send(_call(), _endpoint(), PATIENT)).status == 200


async def test_an_unknown_model_and_a_bad_request_are_told_apart(adapter: Adapter) -> None:
    with pytest.raises(AttemptFailed, match="configuration of this provider") as failed:
        await adapter.send(_call(), _endpoint("gpt-9"), PATIENT)
    assert failed.value.failure.outcome is Outcome.AUTH_ERROR
    with pytest.raises(AttemptFailed) as failed:
        await adapter.send(_call(messages=[]), _endpoint(), PATIENT)
    assert (failed.value.failure.outcome, failed.value.failure.status) == (Outcome.CLIENT_ERROR, 400)
    assert json.loads(failed.value.failure.body or b"")["error"]["param"] == "messages"


@pytest.mark.parametrize("pause", [0, 1])
async def test_leaving_a_stream_early_ends_it_upstream(adapter: Adapter, fleet: ProviderFleet, pause: int) -> None:
    await fleet.inject(Fault(kind=FaultKind.STALL, provider="aurora"))
    chunks = adapter.stream(_call(stream=True), _endpoint(), PATIENT)
    for _ in range(pause + 1):
        await anext(chunks)
    assert fleet.stats("aurora").in_flight == 1
    await chunks.aclose()
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 0)


async def test_the_body_and_what_surrounds_it_reach_the_provider_unchanged(
    make: MakeAdapter, transport: Transport
) -> None:
    """F-17, at the socket."""
    values = b'12345678901234567890,"b":1e400,"c":1.0,"d":"\\u00e9\\/","e":{"z":[ 1.50 ],"a":null}'
    async with WireServer(_answering(b'{"choices":[{"x": 1.0}] }')) as server:
        raw = msgspec.json.decode(b'{"model":"openai/gpt-4","a":' + values + b"}", type=dict[str, msgspec.Raw])
        headers = {"OpenAI-Beta": "x=1", "Authorization": "Bearer the-callers", "X-TEAM": "theirs", "Host": "evil"}
        call = Call(Operation.CHAT, raw, headers=headers, query="beta=%7E1", request_id="q1")
        reply = await make(f"{server.url}/base/v1/", transport).send(call, _endpoint("gpt-4"), PATIENT)
        (seen,) = server.exchanges
    assert reply.body == b'{"choices":[{"x": 1.0}] }'
    assert seen.body == b'{"model":"gpt-4","a":' + values + b"}"
    assert seen.target == "/base/v1/chat/completions?beta=%7E1"
    assert seen.header("authorization") == [f"Bearer {KEY}"]
    assert (seen.header("x-team"), seen.header("openai-beta"), seen.header("x-request-id")) == (["t"], ["x=1"], ["q1"])
    assert seen.header("host") == [f"127.0.0.1:{server.port}"]
    assert seen.header("content-type") == ["application/json"]


@pytest.mark.parametrize(
    "call",
    [
        Call(Operation.CHAT, {}, headers={"x-a": "1\r\nAuthorization: evil"}),
        Call(Operation.CHAT, {}, headers={"x a": "1"}),
        Call(Operation.CHAT, {}, headers={"x-a": "é"}),
        Call(Operation.CHAT, {}, query="a b"),
        Call(Operation.CHAT, {}, query="a#b"),
        Call(Operation.CHAT, {}, query="a HTTP/1.1\r\nX: y"),
    ],
)
async def test_what_would_break_out_of_its_place_is_never_sent(
    make: MakeAdapter, transport: Transport, call: Call
) -> None:
    async with WireServer(_answering(b"{}")) as server:
        with pytest.raises(AttemptFailed, match="expected") as failed:
            await make(server.url, transport).send(call, _endpoint(), PATIENT)
        assert failed.value.failure.outcome is Outcome.CLIENT_ERROR
        assert server.connections == 0


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (_answering(b""), Outcome.MALFORMED),
        (_answering(b"<html>busy</html>"), Outcome.MALFORMED),
        (_answering(b'{"choices":[{"message"'), Outcome.MALFORMED),
        (_answering(b'{"ok":true}'), Outcome.MALFORMED),
        (_answering(b"", status="204 No Content"), Outcome.MALFORMED),
        (_answering(b'{"error":{"code":429,"message":"slow down"}}', "Retry-After: 3"), Outcome.RATE_LIMITED),
        (_answering(b'{"error":{"code":502}}'), Outcome.SERVER_ERROR),
        (_answering(f'{{"error":"no such key {KEY}"}}'.encode(), status="401 No"), Outcome.AUTH_ERROR),
        (_answering(b"", "Location: http://127.0.0.1:1/", status="307 There"), Outcome.AUTH_ERROR),
        (_answering(b"x" * 100_000, status="500 Long"), Outcome.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_none_has_its_outcome(
    make: MakeAdapter, transport: Transport, script: Script, outcome: Outcome, stream: bool
) -> None:
    async with WireServer(script) as server:
        failure = await _fail(make(server.url, transport), stream=stream)
        assert len(server.exchanges) == 1
    assert failure.outcome is outcome
    assert failure.retry_after_s == (3.0 if outcome is Outcome.RATE_LIMITED else None)


@pytest.mark.parametrize(
    ("script", "outcome", "before"),
    [
        (_streaming(), Outcome.TRUNCATED, 0),
        (_streaming(TOKEN, TOKEN), Outcome.TRUNCATED, 2),
        (_streaming(TOKEN, b'data: {"choices":[{"de'), Outcome.TRUNCATED, 1),
        (_streaming(TOKEN, b'data: {"choices":[{"de\n\n'), Outcome.MALFORMED, 1),
        (_streaming(TOKEN, b'data: {"error":{"code":"rate_limit_exceeded"}}\n\n'), Outcome.RATE_LIMITED, 1),
        (_streaming(b'event: error\ndata: {"error":{"message":"boom"}}\n\n'), Outcome.SERVER_ERROR, 0),
        (_streaming(TOKEN, FINISH.replace(b'"index":0', b'"index":1')), Outcome.TRUNCATED, 2),
        (_streaming(TOKEN, ended=False), Outcome.STALLED, 1),
        (_streaming(ended=False), Outcome.TIMEOUT, 0),
    ],
)
async def test_a_stream_that_ends_badly_says_how(
    make: MakeAdapter, transport: Transport, script: Script, outcome: Outcome, before: int
) -> None:
    timeouts = HASTY if outcome in (Outcome.STALLED, Outcome.TIMEOUT) else PATIENT
    async with WireServer(script) as server:
        chunks = make(server.url, transport).stream(_call(stream=True), _endpoint(), timeouts)
        received = [await anext(chunks) for _ in range(before)]
        with pytest.raises(AttemptFailed) as failed:
            await anext(chunks)
    assert failed.value.failure.outcome is outcome
    assert [c.headers.get("x-request-id") for c in received[:1]] == ["r7"] * min(before, 1)


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.STALLED])
async def test_comments_keep_a_connection_open_but_are_no_answer(
    make: MakeAdapter, transport: Transport, outcome: Outcome
) -> None:
    """Gateways send `: PROCESSING` while their own upstream hangs; the limits go by events."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE, chunk(TOKEN) if outcome is Outcome.STALLED else b"")
        while not exchange.writer.is_closing():
            await exchange.send(chunk(b": PROCESSING\n\n"))
            await asyncio.sleep(0.01)

    async with WireServer(script) as server:
        failure = await _fail(make(server.url, transport), stream=True, timeouts=HASTY)
    assert failure.outcome is outcome
    assert "nothing but comments" in failure.error


@pytest.mark.parametrize("events", [(TOKEN, FINISH), (TOKEN, b"data: [DONE]\n\n"), (TOKEN, FINISH, b": bye\n\n")])
async def test_a_complete_stream_is_one_with_finish_reasons_or_done(
    make: MakeAdapter, transport: Transport, events: tuple[bytes, ...]
) -> None:
    async with WireServer(_streaming(*events)) as server:
        adapter = make(server.url, transport)
        for _ in range(2):
            assert (await _stream(adapter, _call(stream=True)))[0].has_content
        assert server.connections == 1


async def test_a_connection_lost_after_a_complete_answer_costs_nothing(make: MakeAdapter, transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE, chunk(TOKEN), chunk(FINISH))
        exchange.close()

    async with WireServer(script) as server:
        assert len(await _stream(make(server.url, transport), _call(stream=True))) == 2


async def test_chunks_of_two_hundred_streams_do_not_mix(make: MakeAdapter, transport: Transport) -> None:
    """L-14, in small: each stream carries its own watermark."""

    async def script(exchange: Exchange) -> None:
        mark = json.loads(exchange.body)["user"]
        await exchange.send(SSE)
        for _ in range(5):
            await exchange.send(chunk(b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % mark.encode()))
            await asyncio.sleep(0)
        await exchange.send(chunk(b"data: [DONE]\n\n"), chunk(b""))

    async with WireServer(script) as server:
        adapter = make(server.url, transport)
        answers = await asyncio.gather(*(_stream(adapter, _call(stream=True, user=f"u{n}")) for n in range(200)))
    for n, chunks in enumerate(answers):
        assert [json.loads(c.data)["choices"][0]["delta"]["content"] for c in chunks] == [f"u{n}"] * 5
