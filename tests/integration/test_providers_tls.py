"""TLS as every transport speaks it: verified unless told whom else to trust."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.httpx_transport import HttpxTransport
from service.providers.transport import ConnectFailed, Timeouts, UpstreamRequest
from tests.wire_server import DEADLINE_S, Exchange, WireServer

# Made for this test, trusted by nobody: a key, and its own certificate for the name localhost until 2126.
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgk7fB/hwPWe1RQnre
znQFEoFHkwkLWnWgD4LgiYSyin6hRANCAAT0lhta6GMEakWFES0AkUbwiQGnKCAY
PkQBYwQuspku9cUosLW1SdGFTsaERSDM2VJvrK79jERA8hyIyujXPcrr
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIUYOYbBOYLmikbjDhzemJ+5koJ1V0wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTA2NTg0N1oYDzIxMjYxMDI4
MDY1ODQ3WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAT0lhta6GMEakWFES0AkUbwiQGnKCAYPkQBYwQuspku9cUosLW1SdGF
TsaERSDM2VJvrK79jERA8hyIyujXPcrro2kwZzAdBgNVHQ4EFgQUjVLodvCUj1hv
Q677zgfONi6GCFwwHwYDVR0jBBgwFoAUjVLodvCUj1hvQ677zgfONi6GCFwwDwYD
VR0TAQH/BAUwAwEB/zAUBgNVHREEDTALgglsb2NhbGhvc3QwCgYIKoZIzj0EAwID
SQAwRgIhAKisL1Zrn/A/sGtY90cY4Rv/1pPCjdmbml6om8Hx5gnHAiEAhGG+a8HW
/1JSeDN9Casr3bTu5pI2CSMcEZ06v9Md1mw=
-----END CERTIFICATE-----
"""
MAKERS = pytest.mark.parametrize("make", [AiohttpTransport, HttpxTransport])
Make = Callable[[ssl.SSLContext | None], AiohttpTransport | HttpxTransport]


@pytest.fixture
def pem(tmp_path: Path) -> Path:
    path = tmp_path / "self-signed.pem"
    path.write_text(SELF_SIGNED)
    return path


@pytest.fixture
def serving(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


async def _hello(exchange: Exchange) -> None:
    await exchange.respond(b"hello")


def _get(url: str) -> UpstreamRequest:
    return UpstreamRequest("GET", url, (), b"", Timeouts(DEADLINE_S, DEADLINE_S, DEADLINE_S))


@MAKERS
async def test_a_certificate_nobody_vouches_for_is_refused(make: Make, serving: ssl.SSLContext) -> None:
    async with WireServer(_hello, serving) as server, make(None) as transport:
        with pytest.raises(ConnectFailed, match=r"^TLS certificate not trusted: self-signed certificate$"):
            await transport.open(_get(server.url))
        assert server.exchanges == []


@MAKERS
async def test_a_certificate_vouched_for_is_accepted_for_its_own_names_only(
    make: Make, serving: ssl.SSLContext, pem: Path
) -> None:
    trusting = ssl.create_default_context(cafile=pem)
    async with WireServer(_hello, serving) as server, make(trusting) as transport:
        assert await (await transport.open(_get(f"https://localhost:{server.port}"))).read(10) == b"hello"
        with pytest.raises(ConnectFailed, match=r"^TLS certificate not trusted: .*not valid for '127\.0\.0\.1'"):
            await transport.open(_get(f"https://127.0.0.1:{server.port}"))


@MAKERS
async def test_a_server_without_tls_is_told(make: Make) -> None:
    def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    plain = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with plain, make(None) as transport:
        with pytest.raises(ConnectFailed, match=r"^TLS failed"):
            await transport.open(_get(f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"))
