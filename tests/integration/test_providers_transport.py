"""Every transport against raw sockets: one suite, one behaviour."""

import asyncio
import importlib.metadata
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.httpx_transport import HttpxTransport
from service.providers.transport import (
    BodyTooLarge,
    ConnectFailed,
    ConnectionBroken,
    FirstByteTimeout,
    StallTimeout,
    Timeouts,
    Transport,
    TransportError,
    UpstreamRequest,
    UpstreamResponse,
)
from tests.wire_server import DEADLINE_S, Exchange, WireServer, chunk, head

PATIENT = Timeouts(connect_s=DEADLINE_S, first_byte_s=DEADLINE_S, stall_s=DEADLINE_S)
CHUNKED = head("Transfer-Encoding: chunked")
SECRET = "sk-very-secret"


@pytest.fixture(params=[AiohttpTransport, HttpxTransport])
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    make: Callable[[], AiohttpTransport | HttpxTransport] = request.param
    async with make() as made:
        yield made


def _post(url: str, *headers: tuple[str, str], body: bytes = b"{}", timeouts: Timeouts = PATIENT) -> UpstreamRequest:
    return UpstreamRequest("POST", url, (("Authorization", SECRET), *headers), body, timeouts)


async def _read(transport: Transport, request: UpstreamRequest, max_bytes: int = 2**20) -> tuple[int, bytes]:
    response = await transport.open(request)
    try:
        return response.status, await response.read(max_bytes)
    finally:
        await response.aclose()


async def _echo(exchange: Exchange) -> None:
    await exchange.respond(exchange.body)


@pytest.mark.parametrize("status", [200, 201, 302, 400, 401, 404, 429, 500, 529])
async def test_any_status_is_an_answer_and_redirects_are_not_followed(transport: Transport, status: int) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.respond(b"said", "Location: /elsewhere", "X-Request-ID: r1", status=f"{status} Why")

    async with WireServer(script) as server:
        response = await transport.open(_post(f"{server.url}/v1"))
        assert (response.status, response.headers["x-request-id"]) == (status, "r1")
        assert await response.read(100) == b"said"
        assert len(server.exchanges) == 1


async def test_a_repeated_response_header_gives_its_first_value(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.respond(b"{}", "Retry-After: 1", "retry-after: 2")

    async with WireServer(script) as server:
        response = await transport.open(_post(server.url))
        assert response.headers["RETRY-AFTER"] == "1"
        await response.aclose()


async def test_the_request_goes_out_as_spelled(transport: Transport) -> None:
    """F-17: path, header order, spelling and repetition, and the body, are the request's own."""
    asked = (("X-Odd-CASE", "1"), ("x-two", "a"), ("B", "2"), ("x-two", "b"), ("Content-Type", "application/json"))
    body = b'{"n": 12345678901234567890, "x": 1e400}'
    async with WireServer(_echo) as server:
        status, echoed = await _read(transport, _post(f"{server.url}/v1/a%7Eb?q=%7E1&r=a|b", *asked, body=body))
        (seen,) = server.exchanges
    assert (status, echoed) == (200, body)
    assert (seen.method, seen.target) == ("POST", "/v1/a%7Eb?q=%7E1&r=a|b")
    assert tuple(pair for pair in seen.headers if pair in asked) == asked
    implied = {name.lower() for name, _ in seen.headers} - {name.lower() for name, _ in asked}
    assert implied == {"host", "content-length", "authorization", "user-agent", "accept-encoding"}
    assert seen.header("user-agent") == [f"routecast/{importlib.metadata.version('routecast')}"]
    assert seen.header("accept-encoding") == ["identity"]


async def test_a_large_body_arrives_whole(transport: Transport) -> None:
    body = bytes(range(256)) * 16_384
    async with WireServer(_echo) as server:
        assert await _read(transport, _post(server.url, body=body), len(body)) == (200, body)
        assert server.exchanges[0].header("content-length") == [str(len(body))]


async def test_a_get_sends_no_body(transport: Transport) -> None:
    async with WireServer(_echo) as server:
        assert await _read(transport, UpstreamRequest("GET", f"{server.url}/v1/models", (), b"", PATIENT)) == (200, b"")
        assert (server.exchanges[0].method, server.exchanges[0].body) == ("GET", b"")


async def test_pieces_are_handed_on_as_they_arrive(transport: Transport) -> None:
    """Each piece is read before the server sends the next: nothing is held back to fill a buffer."""
    read = asyncio.Semaphore(0)

    async def script(exchange: Exchange) -> None:
        await exchange.send(CHUNKED)
        for word in (b"one", b"two", b"three"):
            await exchange.send(chunk(word))
            await read.acquire()
        await exchange.send(chunk(b""))

    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        response = await transport.open(_post(server.url))
        pieces = []
        async for piece in response.chunks():
            pieces.append(piece)
            read.release()
    assert pieces == [b"one", b"two", b"three"]


async def test_a_payload_read_to_its_end_leaves_the_connection_to_the_next_request(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(CHUNKED, chunk(b"x"), chunk(b""))

    async with WireServer(script) as server:
        for _ in range(3):
            assert await _read(transport, _post(server.url)) == (200, b"x")
        assert server.connections == 1


async def test_finish_keeps_a_connection_that_ends_in_time_and_closes_one_that_does_not(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(CHUNKED, chunk(b"[DONE]"))
        if len(server.exchanges) == 1:
            await exchange.send(chunk(b""))
        else:
            await exchange.gone()
            left.set()

    left = asyncio.Event()
    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        for within_s in (DEADLINE_S, 0.01):
            response = await transport.open(_post(server.url))
            assert await anext(aiter(response.chunks())) == b"[DONE]"
            await response.finish(within_s)
        await left.wait()
        assert server.connections == 1


async def test_a_refused_connection_says_so(transport: Transport) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/{SECRET}"
        with pytest.raises(ConnectFailed, match=r"^connection refused$"):
            await transport.open(_post(url))


async def test_an_unknown_host_says_so(transport: Transport) -> None:
    with pytest.raises(ConnectFailed, match=r"^host name not found$"):
        await transport.open(_post("http://nothing.invalid/"))


async def test_a_connection_that_nobody_accepts_is_given_up(transport: Transport) -> None:
    """A full accept queue drops SYNs, as an unreachable host does."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(deaf.getsockname())
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
            with pytest.raises(ConnectFailed, match=r"no connection within 0\.05 s"):
                await transport.open(_post(url, timeouts=Timeouts(0.05, DEADLINE_S, DEADLINE_S)))
            with pytest.raises(FirstByteTimeout):
                await transport.open(_post(url, timeouts=Timeouts(DEADLINE_S, 0.05, DEADLINE_S)))
        finally:
            for sock in waiting:
                sock.close()


async def _reset(exchange: Exchange) -> None:
    exchange.reset()


async def _close(exchange: Exchange) -> None:
    exchange.close()


async def _half_head(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 O")
    exchange.close()


async def _not_http(exchange: Exchange) -> None:
    await exchange.send(b"220 smtp ready\r\n\r\n")


@pytest.mark.parametrize("script", [_reset, _close, _half_head, _not_http])
async def test_a_connection_lost_before_the_head_is_broken_and_nothing_is_sent_twice(
    transport: Transport, script: Callable[[Exchange], AsyncIterator[None]]
) -> None:
    async with WireServer(script) as server:  # type: ignore[arg-type]  # parametrised coroutine functions
        with pytest.raises(ConnectionBroken) as broken:
            await transport.open(_post(f"{server.url}/{SECRET}"))
        assert len(server.exchanges) == 1
        assert SECRET not in str(broken.value)


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_kept_connection_that_turns_out_closed_is_not_tried_again(transport: Transport, method: str) -> None:
    """F-04: the server took the second request and hung up; only the layer above may decide to repeat it."""

    async def script(exchange: Exchange) -> None:
        if len(server.exchanges) == 1:
            await exchange.respond(b"{}")
        else:
            exchange.close()

    async with WireServer(script) as server:
        request = UpstreamRequest(method, server.url, (), b"", PATIENT)
        await _read(transport, request)
        with pytest.raises(ConnectionBroken):
            await _read(transport, request)
        assert (len(server.exchanges), server.connections) == (2, 1)


@pytest.mark.parametrize("opening", [b"", head("Content-Length: 9"), CHUNKED])
async def test_headers_alone_are_no_first_byte(transport: Transport, opening: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(opening)
        await exchange.gone()
        left.set()

    left = asyncio.Event()
    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        with pytest.raises(FirstByteTimeout, match=r"no byte of the answer within 0\.1 s"):
            await _read(transport, _post(server.url, timeouts=Timeouts(DEADLINE_S, 0.1, DEADLINE_S)))
        await left.wait()


async def test_a_payload_that_pauses_too_long_has_stalled(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(CHUNKED, chunk(b"begun"))
        await exchange.gone()
        left.set()

    left = asyncio.Event()
    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        response = await transport.open(_post(server.url, timeouts=Timeouts(DEADLINE_S, DEADLINE_S, 0.05)))
        assert await anext(aiter(response.chunks())) == b"begun"
        with pytest.raises(StallTimeout, match=r"nothing more arrived for 0\.05 s"):
            await response.read(100)
        await left.wait()


@pytest.mark.parametrize("end", [_close, _reset])
@pytest.mark.parametrize(
    "opening", [head("Content-Length: 9") + b"short", CHUNKED + chunk(b"short"), CHUNKED + b"9\r\nshort"]
)
async def test_a_payload_cut_short_is_broken(
    transport: Transport, opening: bytes, end: Callable[[Exchange], AsyncIterator[None]]
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(opening)
        await seen.wait()
        await end(exchange)  # type: ignore[misc]  # parametrised coroutine functions

    seen = asyncio.Event()
    async with WireServer(script) as server:
        response = await transport.open(_post(server.url))
        pieces = response.chunks()
        assert await anext(pieces) == b"short"
        seen.set()
        with pytest.raises(ConnectionBroken):
            await anext(pieces)
        await response.aclose()


async def test_a_payload_without_length_ends_with_its_connection(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(head("Connection: close"), b"to the end")
        exchange.close()

    async with WireServer(script) as server:
        assert await _read(transport, _post(server.url)) == (200, b"to the end")


async def test_a_payload_beyond_the_limit_is_left_unread(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(head("Content-Length: 1000000000"), bytes(2000))
        await exchange.gone()
        left.set()

    left = asyncio.Event()
    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        with pytest.raises(BodyTooLarge, match="larger than 1000 bytes"):
            await _read(transport, _post(server.url), 1000)
        await left.wait()


@pytest.mark.parametrize("opening", [b"", CHUNKED + chunk(b"x")])
async def test_cancelling_closes_the_connection_at_once(transport: Transport, opening: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(opening)
        sent.set()
        await exchange.gone()
        left.set()

    sent, left = asyncio.Event(), asyncio.Event()
    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        reading = asyncio.create_task(_read(transport, _post(server.url)))
        await sent.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await left.wait()


async def test_closing_early_closes_the_connection_at_once(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(CHUNKED, chunk(b"x"))
        await exchange.gone()
        left.set()

    left = asyncio.Event()
    async with WireServer(script) as server, asyncio.timeout(DEADLINE_S):
        response = await transport.open(_post(server.url))
        async with aclosing(response):
            assert await anext(aiter(response.chunks())) == b"x"
        await left.wait()
        assert [piece async for piece in response.chunks()] == []


async def test_proxies_of_the_environment_are_ignored(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    async with WireServer(_reset) as proxy, WireServer(_echo) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        made = type(transport)()  # a client may read the environment when it is made, or at each request
        assert await _read(made, _post(server.url)) == (200, b"{}")
        assert await _read(transport, _post(server.url)) == (200, b"{}")
        await made.aclose()
        assert proxy.connections == 0


async def test_cookies_are_not_kept(transport: Transport) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.respond(b"{}", "Set-Cookie: session=1; Path=/")

    async with WireServer(script) as server:
        for _ in range(2):
            await _read(transport, _post(server.url))
        assert [exchange.header("cookie") for exchange in server.exchanges] == [[], []]


async def test_many_requests_at_once_each_get_their_own_answer(transport: Transport) -> None:
    async with WireServer(_echo) as server:
        bodies = [b'{"n": %d}' % n for n in range(100)]
        answers = await asyncio.gather(*(_read(transport, _post(server.url, body=body)) for body in bodies))
    assert [body for _, body in answers] == bodies


def test_nothing_secret_is_in_a_requests_repr() -> None:
    shown = repr(_post(f"http://example.invalid/?key={SECRET}", body=SECRET.encode()))
    assert "POST" in shown
    assert SECRET not in shown


def test_every_error_is_of_one_family() -> None:
    for error in (ConnectFailed, FirstByteTimeout, StallTimeout, ConnectionBroken, BodyTooLarge):
        assert issubclass(error, TransportError)


async def test_the_payload_limits_do_not_depend_on_the_transport() -> None:
    """A payload that ends at once is an empty answer, not a late one."""

    class Ended:
        async def receive(self) -> bytes:
            return b""

        def at_end(self) -> bool:
            return True

        async def abort(self) -> None:
            raise AssertionError("an ended payload has nothing to abort")

    response = UpstreamResponse(204, {}, Ended(), PATIENT, asyncio.get_running_loop().time() + DEADLINE_S)
    assert await response.read(0) == b""
    await response.aclose()
