"""The transport for the hot path, over aiohttp's client: the least CPU per request of the clients measured in pure API.

The rule of this file: aiohttp's own conveniences (retry, redirects, cookies, environment, decompression, its timeouts
after connecting) are off; see `transport` for who keeps the limits.
"""

import asyncio
import io
import math
import socket
import ssl
from functools import lru_cache
from typing import Self

import aiohttp
from yarl import URL

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

_WHOLE_WRITE_BYTES = 2**20  # larger bodies go out piece by piece, so that one write does not hold the loop
_RESOLVE_S = 2.0
_IMPLIED_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class AiohttpTransport:
    """Connections of one process, kept alive.

    Args:
        tls: the trust settings of https; by default the system's authorities, names verified.
        max_connections: at most this many; a request beyond them waits, within its `first_byte_s`.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self._connector = connector = aiohttp.TCPConnector(
            limit=max_connections,
            keepalive_timeout=IDLE_S,
            ssl=tls or ssl.create_default_context(),
            resolver=_Resolver(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_IMPLIED_HEADERS,
            auto_decompress=False,
            trust_env=False,
        )
        # aiohttp sends a GET again when a kept connection turns out to be closed; there is no public switch.
        self._session._retry_connection = False

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
        return UpstreamResponse(response.status, response.headers, _Payload(response), timeouts, due, watch)

    async def prewarm(self, url: str, connections: int, connect_s: float) -> None:
        """See `Transport.prewarm`. The connections are made, and nothing is sent."""
        request = aiohttp.ClientRequest("GET", URL(url, encoded=True), loop=asyncio.get_running_loop())
        made = await asyncio.gather(
            *(self._connector.connect(request, [], _connect_timeout(connect_s)) for _ in range(connections)),
            return_exceptions=True,
        )
        # Only now, with all of them held at once: else one connection would be counted several times.
        for connection in made:
            if isinstance(connection, aiohttp.connector.Connection):
                connection.release()

    async def aclose(self) -> None:
        """See `Transport.aclose`."""
        await self._session.close()

    async def _request(self, request: UpstreamRequest) -> aiohttp.ClientResponse:
        body = request.body
        try:
            return await self._session.request(
                request.method,
                URL(request.url, encoded=True),
                headers=complete_headers(request.headers),
                data=io.BytesIO(body) if len(body) > _WHOLE_WRITE_BYTES else body or None,
                timeout=_connect_timeout(request.timeouts.connect_s),
                allow_redirects=False,
            )
        except aiohttp.ConnectionTimeoutError:
            raise ConnectFailed(f"no connection within {request.timeouts.connect_s:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise ConnectFailed(cause_of(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionBroken(cause_of(error)) from error


class _Payload:
    __slots__ = ("_response",)

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def receive(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionBroken(cause_of(error)) from error

    def at_end(self) -> bool:
        return self._response.content.at_eof()

    async def abort(self) -> None:
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()  # closing alone would first send what is still buffered
        self._response.close()


class _Resolver(aiohttp.ThreadedResolver):
    """Gives up on a name in time: `sock_connect` begins to count only after it."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        try:
            async with asyncio.timeout(_RESOLVE_S):
                return await super().resolve(host, port, family)
        except TimeoutError:
            raise socket.gaierror(socket.EAI_AGAIN, "no answer in time") from None


@lru_cache(maxsize=64)
def _connect_timeout(connect_s: float) -> aiohttp.ClientTimeout:
    # Not `connect`, which would count waiting for a connection of ours against the provider.
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s, ceil_threshold=math.inf)
