"""The transport over plain httpx: several times the CPU of aiohttp's, for those who want httpx throughout.

The rule of this file: httpx's transport is used without its client, so no header, retry, redirect, cookie, proxy or
decompression comes in by the way; see `transport` for who keeps the limits.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Self
from urllib.parse import urlsplit

import httpx
from multidict import CIMultiDict

from service.providers.transport import (
    IDLE_S,
    MAX_CONNECTIONS,
    ConnectFailed,
    ConnectionBroken,
    UpstreamRequest,
    UpstreamResponse,
    cause_of,
    complete_headers,
    first_byte_timeout,
)
from service.providers.watch import Watch

_KEPT_CONNECTIONS = 1_000


class HttpxTransport:
    """Connections of one process, kept alive.

    Args:
        tls: the trust settings of https; by default the system's authorities, names verified.
        max_connections: at most this many; a request beyond them waits, within its `first_byte_s`.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self._client = httpx.AsyncHTTPTransport(
            verify=tls or ssl.create_default_context(),
            trust_env=False,
            retries=0,
            limits=httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=_KEPT_CONNECTIONS, keepalive_expiry=IDLE_S
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """See `Transport.open`."""
        timeouts, watch = request.timeouts, Watch()
        due = asyncio.get_running_loop().time() + timeouts.first_byte_s
        try:
            with watch.until(due):
                response = await self._request(request)
        except TimeoutError:
            raise first_byte_timeout(timeouts) from None
        headers = CIMultiDict(response.headers.multi_items())
        return UpstreamResponse(response.status_code, headers, _Payload(response), timeouts, due, watch)

    async def prewarm(self, url: str, connections: int, connect_s: float) -> None:
        """Does nothing: httpx cannot connect without a request, and one that nobody made is not ours to send."""

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._client.aclose()

    async def _request(self, request: UpstreamRequest) -> httpx.Response:
        outgoing = httpx.Request(
            request.method,
            request.url,
            headers=complete_headers(request.headers),
            content=request.body or None,
            extensions={"timeout": {"connect": request.timeouts.connect_s}, "target": _target(request.url)},
        )
        try:
            return await self._client.handle_async_request(outgoing)
        except httpx.ConnectTimeout:
            raise ConnectFailed(f"no connection within {request.timeouts.connect_s:g} s") from None
        except httpx.ConnectError as error:
            raise ConnectFailed(cause_of(error)) from error
        except httpx.TransportError as error:
            raise ConnectionBroken(cause_of(error)) from error


def _target(url: str) -> bytes:
    """Path and query as spelled; httpx would re-encode them."""
    parts = urlsplit(url)
    return f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}".encode("ascii")


class _Payload:
    __slots__ = ("_parts", "_response")

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._parts: AsyncIterator[bytes] | None = None

    async def receive(self) -> bytes:
        if self._parts is None:
            self._parts = aiter(self._stream())
        try:
            part = await anext(self._parts, b"")
            if not part:
                await self._stream().aclose()  # httpx gives the connection back only then
        except httpx.TransportError as error:
            raise ConnectionBroken(cause_of(error)) from error
        return part

    def at_end(self) -> bool:
        return False

    async def abort(self) -> None:
        await self._stream().aclose()

    def _stream(self) -> httpx.AsyncByteStream:
        stream = self._response.stream
        if not isinstance(stream, httpx.AsyncByteStream):
            raise TypeError(f"expected an asynchronous response, got {type(stream).__name__}")
        return stream
