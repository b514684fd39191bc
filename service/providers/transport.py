"""The seam between provider adapters and an HTTP client: one request out, one response in, as it arrives.

The rule of this file: whatever a transport does, its caller meets the same five errors and the same three time limits.
A transport only moves bytes; limits of time and size are kept here, once for all of them. It follows no redirect, reads
no proxy from the environment, decompresses nothing, and never sends a request a second time.

TransportError
├── ConnectFailed      no connection came about: the request cannot have been processed
├── FirstByteTimeout   connected or not, no byte of the payload in time
├── StallTimeout       the payload stopped half-way
├── ConnectionBroken   reset, closed early, or not HTTP: the request may have been processed
└── BodyTooLarge       the payload passes the limit given to `read`
"""

import asyncio
import importlib.metadata
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Protocol

import msgspec

from service.providers.watch import Watch

USER_AGENT = f"routecast/{importlib.metadata.version('routecast')}"
MAX_CONNECTIONS = 10_000
IDLE_S = 15.0  # below the idle limits of common servers, so that a reused connection is rarely one just being closed


class TransportError(Exception):
    """Base of all errors of a transport. The text names the cause, never a URL, a header or a body."""


class ConnectFailed(TransportError):  # noqa: N818 - the family name is TransportError
    """No connection came about: refused, unreachable, name unknown, TLS refused, or `connect_s` passed."""


class FirstByteTimeout(TransportError):  # noqa: N818 - a timeout is named as one
    """No byte of the payload arrived within `first_byte_s`."""


class StallTimeout(TransportError):  # noqa: N818 - a timeout is named as one
    """The payload had begun and then paused for longer than `stall_s`."""


class ConnectionBroken(TransportError):  # noqa: N818 - the family name is TransportError
    """The connection ended, or stopped making sense as HTTP, before the response was whole."""


class BodyTooLarge(TransportError):  # noqa: N818 - the family name is TransportError
    """The payload is larger than its reader allows."""


class Timeouts(msgspec.Struct, frozen=True):
    """How long one request may take.

    Attributes:
        connect_s: for name, TCP and TLS together, when a new connection is needed.
        first_byte_s: from `open` to the first byte of the payload, connecting included, so that a caller's deadline
            holds. Headers alone do not count: some providers send them at once and then hang.
        stall_s: between any two arrivals after that.
    """

    connect_s: float
    first_byte_s: float
    stall_s: float


class UpstreamRequest(msgspec.Struct, frozen=True):
    """One request as it goes out: `url` is sent as spelled, `headers` in order and spelling, repeated names kept.

    Only the method is in its repr: keys travel in headers and sometimes in URLs.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeouts: Timeouts

    def __repr__(self) -> str:
        return f"UpstreamRequest({self.method!r}, {self.timeouts!r})"


class Payload(Protocol):
    """What a transport supplies of a response: its bytes, and a way out."""

    async def receive(self) -> bytes:
        """Return the next bytes as they arrive, b"" at the proper end; raises ConnectionBroken."""
        ...

    def at_end(self) -> bool:
        """Is it known already that nothing more comes? False when only `receive` can tell."""
        ...

    async def abort(self) -> None:
        """Close the connection at once, whatever is still to come or to be sent."""
        ...


class UpstreamResponse:
    """A response whose payload is read as it arrives. Whoever holds it must `aclose` it.

    `status` is the HTTP status; `headers` compare their names without case and give the first value of a repeated one.
    A payload read to its end leaves the connection to the next request.

    Args:
        status, headers: as above.
        payload: the bytes to come.
        timeouts: the request's.
        first_byte_due: on the event loop's clock.
        watch: the request's, if it has one already; closed with the response.
    """

    __slots__ = ("_begun", "_due", "_ended", "_loop", "_payload", "_timeouts", "_watch", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: Mapping[str, str],
        payload: Payload,
        timeouts: Timeouts,
        first_byte_due: float,
        watch: Watch | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self._payload = payload
        self._timeouts = timeouts
        self._due = first_byte_due
        self._loop = asyncio.get_running_loop()
        self._watch = watch or Watch()
        self._begun = False
        self._ended = False

    def chunks(self) -> AsyncIterator[bytes]:
        """Iterate over the payload as it arrives, in pieces never empty.

        Raises:
            FirstByteTimeout, StallTimeout, ConnectionBroken: while iterating.
        """
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        part = await self._receive()
        if not part:
            raise StopAsyncIteration
        return part

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole payload; raises BodyTooLarge when it is longer than `max_bytes`, else as `chunks` does."""
        parts: list[bytes] = []
        left = max_bytes
        while part := await self._receive():
            left -= len(part)
            if left < 0:
                await self.aclose()
                raise BodyTooLarge(f"the response is larger than {max_bytes} bytes")
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def finish(self, within_s: float) -> None:
        """Give the connection back if the payload ends within `within_s`, else close it; the rest is dropped."""
        if self._ended:
            return
        try:
            async with asyncio.timeout(within_s):
                while await self._receive():
                    pass
        except (TransportError, TimeoutError):
            await self.aclose()

    async def aclose(self) -> None:
        """Let go: a payload that has not ended takes its connection with it, at once. May be called again."""
        if not self._ended:
            self._end()
            await self._payload.abort()

    def _end(self) -> None:
        self._ended = True
        self._watch.close()

    async def _receive(self) -> bytes:
        if self._ended:
            return b""
        try:
            with self._watch.until(self._loop.time() + self._timeouts.stall_s if self._begun else self._due):
                part = await self._payload.receive()
        except TimeoutError:
            await self.aclose()
            if self._begun:
                raise StallTimeout(f"nothing more arrived for {self._timeouts.stall_s:g} s") from None
            raise first_byte_timeout(self._timeouts) from None
        except TransportError:
            await self.aclose()
            raise
        self._begun = True
        if not part or self._payload.at_end():  # the latter spares most requests a second wait
            self._end()
        return part


class Transport(Protocol):
    """An HTTP client reduced to what adapters need. Made within a running event loop."""

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send `request` once and return when status and headers are there.

        Raises:
            ConnectFailed, FirstByteTimeout, ConnectionBroken: as described above. Cancelling closes the connection.
        """
        ...

    async def prewarm(self, url: str, connections: int, connect_s: float) -> None:
        """See to it that at least `connections` idle ones to the host of `url` wait for requests, each made within
        `connect_s`. Sends nothing; a client that cannot do so does nothing. Failing is no error: the next request will
        tell.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def complete_headers(headers: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    """Return `headers` with User-Agent and `Accept-Encoding: identity` added where they are missing."""
    names = {name.lower() for name, _ in headers}
    completed = list(headers)
    if "user-agent" not in names:
        completed.append(("User-Agent", USER_AGENT))
    if "accept-encoding" not in names:
        completed.append(("Accept-Encoding", "identity"))
    return completed


def first_byte_timeout(timeouts: Timeouts) -> FirstByteTimeout:
    """The error for a response whose payload did not begin in time."""
    return FirstByteTimeout(f"no byte of the answer within {timeouts.first_byte_s:g} s")


def cause_of(error: BaseException) -> str:
    """Return the operating system's or TLS's own words for `error`, which carry no URL and no header."""
    for link in _chain(error):
        if isinstance(link, ssl.SSLError):
            # Clients wrap TLS errors in subclasses that lack these attributes; the original is further down the chain.
            if verdict := getattr(link, "verify_message", ""):
                return f"TLS certificate not trusted: {verdict}"
            if reason := getattr(link, "reason", ""):
                return f"TLS failed: {reason}"
            continue
        if isinstance(link, socket.gaierror):
            return "host name not found"
        if isinstance(link, OSError) and link.errno is not None and link.errno > 0:
            return os.strerror(link.errno).lower()
    return "connection ended early or is not HTTP"


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.exceptions[0] if isinstance(link, BaseExceptionGroup) else link.__cause__ or link.__context__
