"""Conformance: every kind of adapter over every transport, against a simulated provider of its wire format, and raw
sockets for what that cannot send. A new adapter joins `KINDS` and has to pass.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from routing.model import Capability, Endpoint
from routing.outcomes import Outcome
from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.base import Adapter, AttemptFailed, Call, Chunk, Failure, Operation
from service.providers.httpx_transport import HttpxTransport
from service.providers.transport import Timeouts, Transport
from service.wire import AnswerBuilder
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario
from sim.wire import history_digest
from tests.provider_kinds import ANTHROPIC, AZURE, HEADERS, KEY, KINDS, OPENAI, Kind, responding
from tests.wire_server import DEADLINE_S, Exchange, Script, WireServer, chunk, head

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
    wire: WIRE
    models:
      - {{id: openai/gpt-4, provider_model_id: gpt-4-aurora}}
      - {{id: openai/embed, provider_model_id: embed-aurora, kind: embeddings, dimensions: 8}}
"""
PATIENT = Timeouts(connect_s=DEADLINE_S, first_byte_s=DEADLINE_S, stall_s=DEADLINE_S)
HASTY = Timeouts(connect_s=DEADLINE_S, first_byte_s=0.2, stall_s=0.2)
MESSAGES = [{"role": "user", "content": "héllo"}, {"role": "assistant", "content": "hi"}]
SSE = head("Content-Type: text/event-stream", "Transfer-Encoding: chunked")
TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "look"}},
}
TLS = ssl.create_default_context()  # one for all: reading the system's authorities takes longer than a test
OF_OPENAI = pytest.mark.parametrize("kind", [OPENAI, AZURE], ids=str, indirect=True)


@pytest.fixture(params=[AiohttpTransport, HttpxTransport])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    make: Callable[[ssl.SSLContext], AiohttpTransport | HttpxTransport] = request.param
    async with make(TLS) as made:
        yield made


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> Kind:
    asked: Kind = request.param
    return asked


@pytest.fixture
async def fleet(kind: Kind) -> AsyncIterator[ProviderFleet]:
    async with ProviderFleet(parse_scenario(SCENARIO.replace("WIRE", kind.wire.value))) as running:
        yield running


@pytest.fixture
def adapter(kind: Kind, transport: Transport, fleet: ProviderFleet) -> Adapter:
    return kind.make(fleet.url("aurora"), transport)


def _endpoint(provider_model: str = "gpt-4-aurora", capability: Capability = Capability.CHAT) -> Endpoint:
    return Endpoint("aurora/x", "aurora", "eu-west", "a", "openai/x", provider_model, 0, frozenset({capability}))


def _call(*, stream: bool = False, operation: Operation = Operation.CHAT, body: str = "", **fields: Any) -> Call:
    raw = body or json.dumps({"model": "openai/gpt-4", "messages": MESSAGES, **fields})
    return Call(operation, msgspec.json.decode(raw, type=dict[str, msgspec.Raw]), stream, request_id="q1")


async def _stream(adapter: Adapter, call: Call, timeouts: Timeouts = PATIENT) -> list[Chunk]:
    async with aclosing(adapter.stream(call, _endpoint(), timeouts)) as chunks:
        return [chunk async for chunk in chunks]


def _text(chunks: list[Chunk]) -> str:
    choices = [choice for chunk in chunks for choice in json.loads(chunk.data)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def _fail(adapter: Adapter, *, stream: bool = False, timeouts: Timeouts = PATIENT, **fields: Any) -> Failure:
    call = _call(stream=stream, **fields)
    asked = _stream(adapter, call, timeouts) if stream else adapter.send(call, _endpoint(), timeouts)
    with pytest.raises(AttemptFailed) as failed:
        await asked
    failure = failed.value.failure
    for secret in (KEY, *HEADERS.values()):
        assert secret not in f"{failed.value!r} {failure!r} {failure.body!r}"
    return failure


async def test_a_chat_is_answered_and_the_whole_history_arrived(
    adapter: Adapter, kind: Kind, fleet: ProviderFleet
) -> None:
    """F-05."""
    reply = await adapter.send(_call(), _endpoint(), PATIENT)
    answer = json.loads(reply.body)
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "gpt-4-aurora"
    choice = answer["choices"][0]
    assert history_digest(kind.received(MESSAGES)) in choice["message"]["content"]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
    counted = (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
    assert (reply.status, reply.input_tokens, reply.output_tokens) == (200, *counted)
    assert reply.headers["x-request-id"].startswith("req_aurora_")
    assert reply.headers["x-ratelimit-remaining-requests"] == "599999"
    assert "date" not in reply.headers
    name, value = kind.key
    assert {n.lower(): v for n, v in fleet.requests("aurora")[0].headers}[name] == value


async def test_a_stream_gives_the_same_answer_as_it_arrives(adapter: Adapter, fleet: ProviderFleet) -> None:
    whole = json.loads((await adapter.send(_call(), _endpoint(), PATIENT)).body)
    chunks = await _stream(adapter, _call(stream=True))
    assert _text(chunks) == whole["choices"][0]["message"]["content"]
    spoken = [chunk.has_content for chunk in chunks]
    first, last = spoken.index(True), len(spoken) - spoken[::-1].index(True)
    assert all(spoken[first:last])
    assert first in (1, 2)
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["stop"]
    assert (chunks[-1].input_tokens, chunks[-1].output_tokens) == tuple(
        whole["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )
    assert [chunk.usage_requested for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [bool(chunk.headers) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert chunks[0].headers["x-request-id"].startswith("req_aurora_")
    assert fleet.stats("aurora").outcomes == {"ok": 2}


async def test_a_caller_that_asked_for_usage_gets_the_chunk(adapter: Adapter) -> None:
    chunks = await _stream(adapter, _call(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage_requested for chunk in chunks)
    last = json.loads(chunks[-1].data)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], chunks[-1].output_tokens)


async def test_a_limit_of_tokens_is_kept(adapter: Adapter) -> None:
    for call in (_call(max_tokens=3), _call(max_completion_tokens=3)):
        reply = await adapter.send(call, _endpoint(), PATIENT)
        assert (reply.output_tokens, json.loads(reply.body)["choices"][0]["finish_reason"]) == (3, "length")


async def test_a_tool_is_called_and_its_result_brought_back(adapter: Adapter) -> None:
    call = _call(**TOOLS)
    choice = json.loads((await adapter.send(call, _endpoint(), PATIENT)).body)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (called,) = choice["message"]["tool_calls"]
    assert (called["type"], called["function"]["name"]) == ("function", "look")
    assert json.loads(called["function"]["arguments"])["provider"] == "aurora"

    builder = AnswerBuilder()
    chunks = await _stream(adapter, _call(stream=True, **TOOLS))
    for each in chunks:
        builder.add(each.data)
    (streamed,) = json.loads(bytes(builder.message()))["tool_calls"]
    assert json.loads(streamed["function"]["arguments"]) == json.loads(called["function"]["arguments"])
    assert [each.finish_reason for each in chunks if each.finish_reason] == ["tool_calls"]
    assert sum(each.has_content for each in chunks) > 2, "the arguments come in pieces"

    result = {"role": "tool", "tool_call_id": called["id"], "content": "seen"}
    history = [*MESSAGES, {"role": "user", "content": "look"}, choice["message"], result]
    answered = await adapter.send(_call(messages=history, tools=TOOLS["tools"]), _endpoint(), PATIENT)
    assert json.loads(answered.body)["choices"][0]["finish_reason"] == "stop"


@OF_OPENAI
async def test_embeddings_are_answered(adapter: Adapter) -> None:
    call = _call(operation=Operation.EMBEDDINGS, body='{"input":["a","b"],"model":"openai/embed"}')
    reply = await adapter.send(call, _endpoint("embed-aurora"), PATIENT)
    assert len(json.loads(reply.body)["data"]) == 2
    assert (reply.input_tokens, reply.output_tokens) == (2, None)
    embedding = await adapter.probe(_endpoint("embed-aurora", Capability.EMBEDDINGS), PATIENT)
    assert embedding.input_tokens == 1


@OF_OPENAI
async def test_responses_are_answered_whole_and_as_they_arrive(adapter: Adapter) -> None:
    body = '{"model":"openai/gpt-4","input":"hello"}'
    whole = await adapter.send(_call(operation=Operation.RESPONSES, body=body), _endpoint(), PATIENT)
    read = json.loads(whole.body)
    assert (whole.input_tokens, whole.output_tokens) == (
        read["usage"]["input_tokens"],
        read["usage"]["output_tokens"],
    )
    chunks = await _stream(adapter, _call(operation=Operation.RESPONSES, body=body, stream=True))
    events = [json.loads(each.data) for each in chunks]
    assert [each.event.decode() for each in chunks] == [event["type"] for event in events]
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == read["output"][0]["content"][0]["text"]
    assert [each.has_content for each in chunks].index(True) == 4, "what comes before is no token"
    assert (events[-1]["type"], chunks[-1].finish_reason) == ("response.completed", "completed")
    assert (chunks[-1].input_tokens, chunks[-1].output_tokens) == (whole.input_tokens, whole.output_tokens)


@pytest.mark.parametrize("kind", [ANTHROPIC], ids=str, indirect=True)
async def test_what_a_protocol_has_not_is_refused_without_asking(adapter: Adapter, fleet: ProviderFleet) -> None:
    call = _call(operation=Operation.EMBEDDINGS, body='{"input":["a"],"model":"x"}')
    with pytest.raises(AttemptFailed, match="no embeddings") as failed:
        await adapter.send(call, _endpoint(), PATIENT)
    failure = await _fail(adapter, n=2)
    assert {failure.outcome, failed.value.failure.outcome} == {Outcome.UNSUPPORTED}
    assert failure.unsupported == "n"
    assert fleet.requests("aurora") == ()


@pytest.mark.parametrize("kind", [ANTHROPIC], ids=str, indirect=True)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_left_out_of_a_request_is_named_in_the_answer(adapter: Adapter, stream: bool) -> None:
    odd: dict[str, Any] = {"odd\r\nname": 1}
    call = _call(stream=stream, seed=7, logit_bias={"1": 2}, **odd)
    reply = (await _stream(adapter, call))[0] if stream else await adapter.send(call, _endpoint(), PATIENT)
    assert reply.headers["x-routecast-left-out"] == "seed, logit_bias, ?"


async def test_models_are_listed_and_probes_are_cheap(adapter: Adapter) -> None:
    assert [model.id for model in await adapter.list_models(PATIENT)] == ["gpt-4-aurora", "embed-aurora"]
    assert (await adapter.probe(_endpoint(), PATIENT)).output_tokens == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", retry_after_s=1.5), Outcome.RATE_LIMITED),
        (Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", status=500), Outcome.SERVER_ERROR),
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
    if failure.body is not None and outcome is not Outcome.MALFORMED:
        assert {"message", "type", "param", "code"} == set(json.loads(failure.body)["error"]), "as OpenAI writes it"
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 0)
    await fleet.clear()
    assert (await adapter.send(_call(), _endpoint(), PATIENT)).status == 200


async def test_an_unknown_model_and_a_bad_request_are_told_apart(adapter: Adapter, kind: Kind) -> None:
    with pytest.raises(AttemptFailed, match="configuration of this provider") as failed:
        await adapter.send(_call(), _endpoint("gpt-9"), PATIENT)
    assert failed.value.failure.outcome is Outcome.AUTH_ERROR
    failure = await _fail(adapter, messages=[])
    if kind is ANTHROPIC:  # there the adapter already sees it
        assert (failure.outcome, failure.unsupported) == (Outcome.UNSUPPORTED, "messages")
        return
    assert (failure.outcome, failure.status) == (Outcome.CLIENT_ERROR, 400)
    assert "messages" in json.dumps(json.loads(failure.body or b"")["error"])


async def test_a_wrong_key_is_the_operators_matter(kind: Kind, transport: Transport, fleet: ProviderFleet) -> None:
    failure = await _fail(kind.make(fleet.url("aurora"), transport, "sk-some-other-key"))
    assert (failure.outcome, failure.status) == (Outcome.AUTH_ERROR, 401)


@pytest.mark.parametrize("pause", [0, 1])
async def test_leaving_a_stream_early_ends_it_upstream(adapter: Adapter, fleet: ProviderFleet, pause: int) -> None:
    await fleet.inject(Fault(kind=FaultKind.STALL, provider="aurora"))
    chunks = adapter.stream(_call(stream=True), _endpoint(), PATIENT)
    for _ in range(pause + 1):
        await anext(chunks)
    assert fleet.stats("aurora").in_flight == 1
    await chunks.aclose()
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_cancelling_closes_the_upstream_connection(kind: Kind, transport: Transport, stream: bool) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE + chunk(kind.opening) if stream else b"")
        arrived.set()
        await exchange.gone()
        left.set()

    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        made, call = kind.make(server.url, transport), _call(stream=stream)
        task = asyncio.ensure_future(_stream(made, call) if stream else made.send(call, _endpoint(), PATIENT))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await left.wait()


@OF_OPENAI
async def test_the_body_and_what_surrounds_it_reach_the_provider_unchanged(kind: Kind, transport: Transport) -> None:
    """F-17, at the socket."""
    values = b'12345678901234567890,"b":1e400,"c":1.0,"d":"\\u00e9\\/","e":{"z":[ 1.50 ],"a":null}'
    answer = b'{"choices":[{"x": 1.0,"message":{"content":"\\u00e9"}}] }'
    async with WireServer(responding(answer)) as server:
        raw = msgspec.json.decode(b'{"model":"openai/gpt-4","a":' + values + b"}", type=dict[str, msgspec.Raw])
        call = Call(Operation.CHAT, raw, headers=_theirs(), query="beta=%7E1", request_id="q1")
        reply = await kind.make(f"{server.url}/base/", transport).send(call, _endpoint("gpt-4"), PATIENT)
        (seen,) = server.exchanges
    assert reply.body == answer
    assert seen.body == b'{"model":"gpt-4","a":' + values + b"}"


def _theirs() -> dict[str, str]:
    return {"Traceparent": "00-1", "Authorization": "Bearer the-callers", "X-TEAM": "theirs", "Host": "evil"}


async def test_headers_go_along_and_credentials_are_ours(kind: Kind, transport: Transport) -> None:
    """F-17, at the socket."""
    async with WireServer(kind.answering()) as server:
        call = Call(Operation.CHAT, _call().fields, headers=_theirs(), query="beta=%7E1", request_id="q1")
        reply = await kind.make(f"{server.url}/base/", transport).send(call, _endpoint("gpt-4"), PATIENT)
        (seen,) = server.exchanges
    assert (reply.input_tokens, reply.output_tokens) == (3, 2)
    assert seen.target == f"/base{kind.target}"
    assert seen.header(kind.key[0]) == [kind.key[1]]
    assert "the-callers" not in str(seen.headers)
    assert (seen.header("x-team"), seen.header("traceparent"), seen.header("x-request-id")) == (
        ["team-secret-7"],
        ["00-1"],
        ["q1"],
    )
    assert seen.header("host") == [f"127.0.0.1:{server.port}"]
    assert seen.header("content-type") == ["application/json"]


@pytest.mark.parametrize(
    "around",
    [
        {"headers": {"x-a": "1\r\nAuthorization: evil"}},
        {"headers": {"x a": "1"}},
        {"headers": {"x-a": "é"}},
        {"query": "a b"},
        {"query": "a#b"},
        {"query": "a HTTP/1.1\r\nX: y"},
    ],
)
async def test_what_would_break_out_of_its_place_is_never_sent(
    kind: Kind, transport: Transport, around: dict[str, Any]
) -> None:
    call = Call(Operation.CHAT, _call().fields, **around)
    async with WireServer(kind.answering()) as server:
        made = kind.make(server.url, transport)
        if kind is ANTHROPIC and "query" in around:  # a query written for OpenAI does not go there at all
            await made.send(call, _endpoint(), PATIENT)
            assert server.exchanges[0].target == kind.target
            return
        with pytest.raises(AttemptFailed, match="expected") as failed:
            await made.send(call, _endpoint(), PATIENT)
        assert failed.value.failure.outcome is Outcome.CLIENT_ERROR
        assert server.connections == 0


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (responding(b""), Outcome.MALFORMED),
        (responding(b"<html>busy</html>"), Outcome.MALFORMED),
        (responding(b'{"choices":[{"message"'), Outcome.MALFORMED),
        (responding(b'{"ok":true}'), Outcome.MALFORMED),
        (responding(b"", status="204 No Content"), Outcome.MALFORMED),
        (responding(b'{"error":{"code":429,"message":"slow down"}}', "Retry-After: 3"), Outcome.RATE_LIMITED),
        (responding(b'{"error":{"code":502}}'), Outcome.SERVER_ERROR),
        (responding(f'{{"error":"no such key {KEY}"}}'.encode(), status="401 No"), Outcome.AUTH_ERROR),
        (responding(f'{{"error":{{"message":"{KEY}"}}}}'.encode(), status="400 No"), Outcome.CLIENT_ERROR),
        (responding(b"", "Location: http://127.0.0.1:1/", status="307 There"), Outcome.AUTH_ERROR),
        (responding(b"x" * 100_000, status="500 Long"), Outcome.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_none_has_its_outcome(
    kind: Kind, transport: Transport, script: Script, outcome: Outcome, stream: bool
) -> None:
    async with WireServer(script) as server:
        failure = await _fail(kind.make(server.url, transport), stream=stream)
        assert len(server.exchanges) == 1
    assert failure.outcome is outcome
    assert failure.retry_after_s == (3.0 if outcome is Outcome.RATE_LIMITED else None)


ERRORS = [
    ("400 Bad", "invalid_request_error", Outcome.CLIENT_ERROR),
    ("401 No", "authentication_error", Outcome.AUTH_ERROR),
    ("403 No", "permission_error", Outcome.AUTH_ERROR),
    ("413 Large", "request_too_large", Outcome.CLIENT_ERROR),
    ("429 Slow", "rate_limit_error", Outcome.RATE_LIMITED),
    ("500 Oh", "api_error", Outcome.SERVER_ERROR),
    ("504 Late", "timeout_error", Outcome.TIMEOUT),
    ("529 Busy", "overloaded_error", Outcome.SERVER_ERROR),
]


@pytest.mark.parametrize(("status", "said", "outcome"), ERRORS)
async def test_an_error_has_one_outcome_as_status_as_body_and_as_event(
    kind: Kind, transport: Transport, status: str, said: str, outcome: Outcome
) -> None:
    body = kind.error(said, "because of me")
    event = kind.error_event(said, "because of me")
    for script in (
        responding(body, status=status),
        responding(body),
        kind.streaming(event),
        kind.streaming(kind.opening, kind.token("a"), event),
    ):
        async with WireServer(script) as server:
            failure = await _fail(kind.make(server.url, transport), stream=True)
        assert failure.outcome is outcome
        assert "because of me" in failure.error
        shown = json.loads(failure.body or b"")["error"]
        assert (shown["message"], shown["type"]) == ("because of me", said)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_says_nothing_is_empty(kind: Kind, transport: Transport, stream: bool) -> None:
    """F-09; in a stream it is told before anything was handed on with which a failover could not go unseen."""
    script = kind.streaming(kind.opening, kind.ending) if stream else responding(kind.blank)
    async with WireServer(script) as server:
        made = kind.make(server.url, transport)
        received: list[Chunk] = []

        async def ask() -> None:
            if not stream:
                await made.send(_call(), _endpoint(), PATIENT)
            async for each in made.stream(_call(stream=True), _endpoint(), PATIENT):
                received.append(each)  # noqa: PERF401  # a comprehension would lose what came before the error

        with pytest.raises(AttemptFailed) as failed:
            await ask()
    assert failed.value.failure.outcome is Outcome.EMPTY
    assert not any(each.has_content or each.finish_reason for each in received)


async def test_text_where_json_was_asked_for_refuses_the_format(kind: Kind, transport: Transport) -> None:
    """F-09."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    async with WireServer(kind.answering("Certainly!")) as server:
        made = kind.make(server.url, transport)
        assert (await _fail(made, response_format=schema)).outcome is Outcome.REFUSED_FORMAT
        assert (await made.send(_call(), _endpoint(), PATIENT)).status == 200
    async with WireServer(kind.answering('{"a": 1}')) as server:
        reply = await kind.make(server.url, transport).send(_call(response_format=schema), _endpoint(), PATIENT)
        assert reply.status == 200


BAD_ENDS: list[tuple[str, Callable[[Kind], Script], Outcome]] = [
    ("nothing", lambda k: k.streaming(), Outcome.TRUNCATED),
    ("cut after tokens", lambda k: k.streaming(k.opening, k.token("a"), k.token("b")), Outcome.TRUNCATED),
    ("cut in an event", lambda k: k.streaming(k.opening, k.token("a"), k.token("b")[:-9]), Outcome.TRUNCATED),
    ("no JSON", lambda k: k.streaming(k.opening, k.token("a"), b'data: {"choices":[{"de\n\n'), Outcome.MALFORMED),
    ("no object", lambda k: k.streaming(k.opening, b"data: 7\n\n"), Outcome.MALFORMED),
    ("silence after tokens", lambda k: k.streaming(k.opening, k.token("a"), ended=False), Outcome.STALLED),
    ("silence", lambda k: k.streaming(ended=False), Outcome.TIMEOUT),
]


@pytest.mark.parametrize(("script", "outcome"), [bad[1:] for bad in BAD_ENDS], ids=[bad[0] for bad in BAD_ENDS])
async def test_a_stream_that_ends_badly_says_how(
    kind: Kind, transport: Transport, script: Callable[[Kind], Script], outcome: Outcome
) -> None:
    timeouts = HASTY if outcome in (Outcome.STALLED, Outcome.TIMEOUT) else PATIENT
    async with WireServer(script(kind)) as server:
        failure = await _fail(kind.make(server.url, transport), stream=True, timeouts=timeouts)
    assert failure.outcome is outcome


@OF_OPENAI
async def test_a_stream_of_several_choices_is_whole_when_each_has_finished(kind: Kind, transport: Transport) -> None:
    other = kind.finish.replace(b'"index":0', b'"index":1')
    async with WireServer(kind.streaming(kind.token("a"), other)) as server:
        assert (await _fail(kind.make(server.url, transport), stream=True)).outcome is Outcome.TRUNCATED
    async with WireServer(kind.streaming(kind.token("a"), other, kind.finish)) as server:
        assert len(await _stream(kind.make(server.url, transport), _call(stream=True))) == 3


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.STALLED])
async def test_comments_keep_a_connection_open_but_are_no_answer(
    kind: Kind, transport: Transport, outcome: Outcome
) -> None:
    """Gateways send `: PROCESSING` while their own upstream hangs; the limits go by events."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE, chunk(kind.opening) if outcome is Outcome.STALLED else b"")
        while not exchange.writer.is_closing():
            await exchange.send(chunk(b": PROCESSING\n\n"))
            await asyncio.sleep(0.01)

    async with WireServer(script) as server:
        # Time enough for the first comment to arrive on a busy machine, too: without one the error is another.
        unhurried = Timeouts(connect_s=DEADLINE_S, first_byte_s=1.0, stall_s=1.0)
        failure = await _fail(kind.make(server.url, transport), stream=True, timeouts=unhurried)
    assert failure.outcome is outcome
    assert "nothing but comments" in failure.error


@pytest.mark.parametrize("comment", [b"", b": bye\n\n"])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_complete_stream_leaves_its_connection_to_the_next(
    kind: Kind, transport: Transport, comment: bytes, whole: bool
) -> None:
    events = (kind.opening, kind.token("a"), kind.ending if whole else kind.finish, comment)
    async with WireServer(kind.streaming(*(event for event in events if event))) as server:
        adapter = kind.make(server.url, transport)
        for _ in range(2):
            assert _text(await _stream(adapter, _call(stream=True))) == "a"
        assert server.connections == 1


async def test_a_connection_lost_after_a_complete_answer_costs_nothing(kind: Kind, transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(SSE, chunk(kind.opening), chunk(kind.token("a")), chunk(kind.finish))
        exchange.close()

    async with WireServer(script) as server:
        chunks = await _stream(kind.make(server.url, transport), _call(stream=True))
    assert _text(chunks) == "a"
    assert [each.finish_reason for each in chunks if each.finish_reason] == ["stop"]


async def test_chunks_of_two_hundred_streams_do_not_mix(kind: Kind, transport: Transport) -> None:
    """L-14, in small: each stream carries its own watermark."""

    async def script(exchange: Exchange) -> None:
        mark = json.loads(exchange.body)
        mark = mark.get("user") or mark["metadata"]["user_id"]
        await exchange.send(SSE, chunk(kind.opening))
        for _ in range(5):
            await exchange.send(chunk(kind.token(mark)))
            await asyncio.sleep(0)
        await exchange.send(chunk(kind.ending), chunk(b""))

    async with WireServer(script) as server:
        adapter = kind.make(server.url, transport)
        answers = await asyncio.gather(*(_stream(adapter, _call(stream=True, user=f"u{n}")) for n in range(200)))
    for n, chunks in enumerate(answers):
        assert _text(chunks) == f"u{n}" * 5


@OF_OPENAI
async def test_a_response_that_ends_badly_says_how(kind: Kind, transport: Transport) -> None:
    created = b'event: response.created\ndata: {"type":"response.created","response":{"status":"in_progress"}}\n\n'
    delta = b'event: x\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
    said = b'{"code":"rate_limit_exceeded","message":"slow down"}'
    failed = b'data: {"type":"response.failed","response":{"status":"failed","error":%s}}\n\n' % said
    blank = b'data: {"type":"response.completed","response":{"status":"completed","output":[]}}\n\n'
    error = b'data: {"type":"error","code":"rate_limit_exceeded","message":"slow down","param":null}\n\n'
    for events, outcome in (
        ((created,), Outcome.TRUNCATED),
        ((created, delta, b"data: [DONE]\n\n"), Outcome.TRUNCATED),
        ((created, failed), Outcome.RATE_LIMITED),
        ((created, delta, error), Outcome.RATE_LIMITED),
        ((created, blank), Outcome.EMPTY),
        ((created, b"data: {}\n\n"), Outcome.MALFORMED),
    ):
        async with WireServer(kind.streaming(*events)) as server:
            call = _call(operation=Operation.RESPONSES, body='{"input":"x"}', stream=True)
            with pytest.raises(AttemptFailed) as raised:
                await _stream(kind.make(server.url, transport), call)
        assert raised.value.failure.outcome is outcome
    for body, outcome in (
        (b'{"status":"failed","error":%s}' % said, Outcome.RATE_LIMITED),
        (b'{"status":"completed","output":[]}', Outcome.EMPTY),
        (b'{"status":"completed"}', Outcome.MALFORMED),
    ):
        async with WireServer(responding(body)) as server:
            call = _call(operation=Operation.RESPONSES, body='{"input":"x"}')
            with pytest.raises(AttemptFailed) as raised:
                await kind.make(server.url, transport).send(call, _endpoint(), PATIENT)
        assert raised.value.failure.outcome is outcome
