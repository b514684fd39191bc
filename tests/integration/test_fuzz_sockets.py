"""Fuzzing over real sockets: providers that answer anything, callers that send anything. Whatever comes, an attempt
ends with an answer or a classified failure in time, the edge answers or hangs up, and nothing is left open.
"""

import asyncio
import json
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from routing.model import Capability, Endpoint
from routing.outcomes import Outcome
from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.base import AttemptFailed, Call, Chunk, Operation, Reply
from service.providers.transport import Timeouts
from sim.provider_server import ProviderFleet
from sim.scenario import parse_scenario
from tests.provider_kinds import KINDS, Kind
from tests.service_under_test import GPT4, SCENARIO, Service, in_process
from tests.wire_server import Exchange, WireServer, chunk, head

TLS = ssl.create_default_context()
TIMEOUTS = Timeouts(connect_s=2.0, first_byte_s=2.0, stall_s=2.0)
ENDED_S = 20.0
ENDPOINT = Endpoint("p:m", "p", "r", "z", "m", "m", 0, frozenset({Capability.CHAT}))
FIELDS = msgspec.json.decode(b'{"model":"m","messages":[{"role":"user","content":"x"}]}', type=dict[str, msgspec.Raw])
SOME = settings(max_examples=settings().max_examples * 2 // 5, deadline=None, suppress_health_check=list(HealthCheck))

BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"", b"{}", b"[]", b'{"choices":[]}', b'{"error":{}}', b'{"content":[]}', b"data: [DONE]\n\n"]),
    st.lists(
        st.one_of(
            st.sampled_from(
                [b"data: ", b"event: error\n", b"\n\n", b"\r\n", b": c\n", b"[DONE]", b'{"choices":[{"delta":']
            ),
            st.binary(max_size=20),
        ),
        max_size=12,
    ).map(b"".join),
)
HEADS = st.one_of(
    st.sampled_from(
        [
            head("Content-Type: text/event-stream", "Connection: close"),
            head("Content-Type: application/json", "Connection: close"),
            head("Content-Type: application/json", "Content-Length: 10"),
            head("Content-Type: application/json", "Transfer-Encoding: chunked"),
            head("Retry-After: \x00", "Connection: close", status="429 Slow"),
            head("Connection: close", status="503 No"),
            head("Connection: close", status="999 What"),
            b"HTTP/1.1 200\r\n\r\n",
            b"",
        ]
    ),
    st.binary(max_size=80),
    st.lists(st.text(st.characters(codec="latin-1"), max_size=30), max_size=4).map(
        lambda lines: ("HTTP/1.1 200 OK\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    ),
)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running


async def _attempt(kind: Kind, answer: bytes, *, stream: bool) -> Outcome:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer)
        exchange.close()

    async with asyncio.timeout(ENDED_S), WireServer(script) as server, AiohttpTransport(TLS) as transport:
        adapter = kind.make(server.url, transport)
        call = Call(Operation.CHAT, FIELDS, stream)
        try:
            if not stream:
                assert isinstance(await adapter.send(call, ENDPOINT, TIMEOUTS), Reply)
                return Outcome.OK
            async with aclosing(adapter.stream(call, ENDPOINT, TIMEOUTS)) as chunks:
                async for each in chunks:
                    assert isinstance(each, Chunk)
        except AttemptFailed as failed:
            return failed.failure.outcome
        return Outcome.OK


@SOME
@given(st.sampled_from(KINDS), HEADS, BODIES, st.booleans(), st.booleans())
def test_a_provider_that_answers_anything_ends_the_attempt(
    runner: asyncio.Runner, kind: Kind, opening: bytes, body: bytes, chunked: bool, stream: bool
) -> None:
    answer = opening + (chunk(body) + chunk(b"") if chunked else body)
    runner.run(_attempt(kind, answer, stream=stream))
    left = asyncio.all_tasks(runner.get_loop())
    assert left == set()


@pytest.fixture(scope="module")
def service(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    stack = AsyncExitStack()
    directory: Path = tmp_path_factory.mktemp("fuzz")

    async def start() -> Service:
        fleet = await stack.enter_async_context(ProviderFleet(parse_scenario(SCENARIO)))
        return await stack.enter_async_context(in_process(fleet, directory, upstream={"prewarm": 0}))

    yield runner.run(start())
    runner.run(stack.aclose())


async def _send(service: Service, request: bytes) -> bytes:
    """Send bytes to the HTTP edge and return what comes back until it hangs up."""
    async with asyncio.timeout(ENDED_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.ports.http)
        try:
            writer.write(request)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


PATHS = st.sampled_from(
    [b"/v1/chat/completions", b"/v1/embeddings", b"/v1/responses", b"/v1/models", b"/", b"*", b"//"]
)
LINES = st.one_of(
    st.binary(max_size=40).filter(lambda line: not {10, 13} & set(line)),
    st.sampled_from(
        [b"Transfer-Encoding: chunked", b"Content-Length: -1", b"Content-Length: 5", b"Expect: 100-continue"]
    ),
    st.sampled_from([b"Content-Encoding: gzip", b"x-routecast-objective: x", b"x-request-id: \xff", b"Host: a\x00b"]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.just(GPT4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)
ASKED = st.fixed_dictionaries(
    {"model": st.one_of(st.just(GPT4), JSON)},
    optional=dict.fromkeys(("messages", "input", "stream", "tools", "n", "stream_options", "max_tokens"), JSON),
)


@SOME
@given(st.sampled_from([b"POST", b"GET", b"PUT", b"\xff"]), PATHS, st.lists(LINES, max_size=4), BODIES)
def test_a_caller_that_sends_anything_gets_an_answer_or_a_hang_up(
    runner: asyncio.Runner, service: Service, method: bytes, path: bytes, lines: list[bytes], body: bytes
) -> None:
    request = b"\r\n".join([method + b" " + path + b" HTTP/1.1", *lines, b"Content-Length: %d" % len(body), b"", body])
    answer = runner.run(_send(service, request))
    assert answer == b"" or answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 "))
    assert not answer.startswith((b"HTTP/1.1 500", b"HTTP/1.0 500"))


@SOME
@given(st.sampled_from(["chat/completions", "embeddings", "responses"]), ASKED)
def test_json_of_any_shape_gets_an_answer_of_openais_shape(
    runner: asyncio.Runner, service: Service, path: str, body: dict[str, Any]
) -> None:
    async def ask() -> tuple[int, str, bytes]:
        data = json.dumps(body).encode()
        async with service.http.post(f"{service.url}/v1/{path}", data=data) as response:
            return response.status, response.headers["content-type"], await response.read()

    status, content_type, answer = runner.run(ask())
    assert status in (200, 400, 404, 503)
    if content_type.startswith("application/json"):
        said = json.loads(answer)
        assert "error" in said if status != 200 else "error" not in said or said["error"] is None
    healthy: Any = [{"role": "user", "content": "x"}]
    assert runner.run(service.sdk.chat.completions.create(model=GPT4, messages=healthy)).choices
