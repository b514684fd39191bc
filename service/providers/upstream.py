"""One provider as every wire protocol needs it: its address, its credentials, and what may pass in either direction.

The rule of this file: the key is known at construction and goes into the headers; nothing that leaves here (reply,
failure, repr) holds it, even when a provider's error echoes it. What a body means is the adapter's business.
"""

import asyncio
import dataclasses
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from urllib.parse import urlsplit

from msgspec.structs import replace

from routing.outcomes import Outcome
from service.providers.base import AttemptFailed, Call, Chunk, Failure
from service.providers.classify import (
    ErrorDetail,
    detail_of,
    error_text,
    is_error_object,
    of_error_object,
    of_status,
    of_transport_error,
)
from service.providers.reader import EventReader, Malformed, Reported, Unusable
from service.providers.retry_after import asked_wait_s, retry_after_s
from service.providers.sse import SseError, SseEvent, SseParser
from service.providers.transport import Timeouts, Transport, TransportError, UpstreamRequest, UpstreamResponse

MAX_BODY_BYTES = 128 * 2**20  # 2,048 embeddings of 3,072 floats in JSON
_MAX_ERROR_BODY_BYTES = 64 * 2**10
_LINGER_S = 0.05  # for the end of a stream's payload after its last event, so that its connection can be kept
_KEPT_HEADERS = ("x-request-id", "x-ratelimit-", "retry-after", "openai-", "content-type", "x-should-retry")
# They belong to the connection, to the body as we send it, or to our own account with the provider.
_OWN_HEADERS = frozenset((
    "accept", "accept-encoding", "api-key", "authorization", "connection", "content-encoding",
    "content-length", "content-type", "cookie", "expect", "host", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "x-api-key",
))  # fmt: skip
_JSON = ("Content-Type", "application/json")
_ACCEPT_JSON, _ACCEPT_EVENTS = ("Accept", "application/json"), ("Accept", "text/event-stream")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_QUERY = re.compile(r"[\x21-\x22\x24-\x7e]*")
_SECRET_CHARACTERS = 8  # shorter values are names and flags, and would be found everywhere
_WAITS: Mapping[Outcome, Callable[[Mapping[str, str], float], float | None]] = {
    Outcome.RATE_LIMITED: retry_after_s,
    Outcome.SERVER_ERROR: asked_wait_s,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Dialect:
    """How a protocol's answers are put in OpenAI's words.

    Attributes:
        kept: the headers (lower case) of an answer that say something about it or about limits, under OpenAI's names.
        error_body: an error body as an OpenAI client reads it.
    """

    kept: Callable[[Mapping[str, str]], dict[str, str]]
    error_body: Callable[[bytes], bytes]


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that say something about an answer or about limits, where a provider uses OpenAI's names."""
    return {lower: value for name, value in headers.items() if (lower := name.lower()).startswith(_KEPT_HEADERS)}


OPENAI = Dialect(kept_headers, bytes)


_NOTHING: Mapping[str, str] = MappingProxyType({})
Prepared = tuple[UpstreamRequest, dict[str, str]]


class Upstream:
    """One provider's account at one address.

    Args:
        base_url: http or https, up to where the protocol's paths begin.
        transport: carries the requests; shared between providers and closed by whoever made it.
        credentials: the headers that carry the key; empty when there is none.
        headers: extra headers on every request, such as an organisation; treated as secrets too.
        version: the header that names the protocol's version, where it has one.
        dialect: how its answers are put in OpenAI's words.
        clock: seconds since the epoch, against which HTTP dates are read.

    Raises:
        ValueError: `base_url` is not such a URL.
    """

    def __init__(
        self,
        base_url: str,
        transport: Transport,
        *,
        credentials: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
        version: Mapping[str, str] = _NOTHING,
        dialect: Dialect = OPENAI,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = _checked(base_url)
        self._transport = transport
        self._dialect = dialect
        self._clock = clock
        extra = dict(headers or {})
        self._headers = tuple((dict(credentials) | dict(version) | extra).items())
        secrets = (*(value.removeprefix("Bearer ") for value in credentials.values()), *extra.values())
        self._secrets = tuple(value.encode() for value in secrets if len(value) >= _SECRET_CHARACTERS)
        self._own = _OWN_HEADERS | {name.lower() for name, _ in self._headers}

    def post(self, call: Call, path: str, body: bytes, timeouts: Timeouts, *, query: str = "") -> UpstreamRequest:
        """Return the request that carries `call`: its headers, and `query`, where they may go upstream.

        Raises:
            AttemptFailed: a header or the query would break out of its place.
        """
        url = f"{self.base_url}{path}"
        if query:
            if not _QUERY.fullmatch(query):
                raise failed(Outcome.CLIENT_ERROR, None, "query: expected printable ASCII without space or '#'")
            url = f"{url}?{query}"
        headers = [*self._headers, _JSON, _ACCEPT_EVENTS if call.stream else _ACCEPT_JSON]
        names = set()
        for name, value in call.headers.items():
            lower = name.lower()
            if lower in self._own:
                continue
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise failed(Outcome.CLIENT_ERROR, None, f"header {name!r}: expected a token and printable ASCII")
            names.add(lower)
            headers.append((name, value))
        if call.request_id and "x-request-id" not in names:
            headers.append(("X-Request-Id", call.request_id))
        return UpstreamRequest("POST", url, tuple(headers), body, timeouts)

    def get(self, path: str, timeouts: Timeouts) -> UpstreamRequest:
        """Return a request without a body."""
        headers = (*self._headers, _ACCEPT_JSON)
        return UpstreamRequest("GET", f"{self.base_url}{path}", headers, b"", timeouts)

    def kept(self, response: UpstreamResponse) -> dict[str, str]:
        """Return the headers of an answer that are worth passing on."""
        return self._dialect.kept(response.headers)

    def exchange(self, request: UpstreamRequest) -> "_Exchange":
        """One request and its 2xx response, let go of at the end; whatever goes wrong becomes AttemptFailed."""
        return _Exchange(self, request)

    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send a request and return its 2xx response, which the caller lets go of; raises AttemptFailed."""
        try:
            response = await self._transport.open(request)
        except TransportError as error:
            raise failed(of_transport_error(error), None, str(error)) from error
        if 200 <= response.status < 300:
            return response
        try:
            raise await self._refused(response)
        finally:
            await response.aclose()

    async def stream(self, prepare: Callable[[], Prepared], reader: EventReader) -> AsyncGenerator[Chunk, None]:
        """Yield what `reader` makes of the events of the answer.

        Args:
            prepare: makes the request, and headers of our own to go with the answer's on the first chunk; called when
                the first chunk is asked for, so that what is wrong with the request is raised there.
            reader: new, for this stream.

        Raises:
            AttemptFailed: after any number of chunks; among others when the stream ends before it is complete.
        """
        request, own_headers = prepare()
        async with self.exchange(request) as response:
            await _require_events(response)
            opening = self.kept(response) | own_headers
            async with aclosing(_events(response, request.timeouts, reader)) as events:
                async for event in events:
                    for chunk in reader.read(event):
                        if opening:
                            yield replace(chunk, headers=opening)
                            opening = {}
                        else:
                            yield chunk
                    if reader.done:
                        break
            if not reader.complete:
                raise failed(Outcome.TRUNCATED, response.status, "the stream ended before its answer was complete")
            for chunk in reader.end():
                yield chunk
            await response.finish(_LINGER_S)

    def failure_of(self, error: BaseException, response: UpstreamResponse) -> AttemptFailed | None:
        """Return what an error while reading `response` makes of the attempt; None for errors that are not of that."""
        status = response.status
        match error:
            case TransportError():
                return failed(of_transport_error(error), status, str(error))
            case Malformed() | SseError():
                return failed(Outcome.MALFORMED, status, str(error))
            case Unusable():
                return failed(error.outcome, status, str(error))
            case Reported():
                detail = detail_of(self._without_secrets(error.body))
                return self._failure(of_error_object(detail), detail, response, error.body)
        return None

    async def _refused(self, response: UpstreamResponse) -> AttemptFailed:
        try:
            body = await response.read(_MAX_ERROR_BODY_BYTES)
        except TransportError:
            body = b""  # the status has said what counts
        detail = detail_of(self._without_secrets(body))
        return self._failure(of_status(response.status, detail), detail, response, body)

    def _failure(self, outcome: Outcome, detail: ErrorDetail, response: UpstreamResponse, body: bytes) -> AttemptFailed:
        status, kept = response.status, self.kept(response)
        wait = _WAITS.get(outcome)
        wait_s = wait(kept, self._clock()) if wait else None
        text = error_text(detail, outcome, status)
        said = self._dialect.error_body(self._without_secrets(body))
        return AttemptFailed(Failure(outcome, status, text, wait_s, said or None, kept))

    def _without_secrets(self, body: bytes) -> bytes:
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return body


class _Exchange:
    """See `Upstream.exchange`. A class, for a generator costs several times as much on every request."""

    __slots__ = ("_request", "_response", "_upstream")
    _response: UpstreamResponse

    def __init__(self, upstream: Upstream, request: UpstreamRequest) -> None:
        self._upstream = upstream
        self._request = request

    async def __aenter__(self) -> UpstreamResponse:
        self._response = await self._upstream.open(self._request)
        return self._response

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        await self._response.aclose()
        failure = self._upstream.failure_of(error, self._response) if error is not None else None
        if failure is not None:
            raise failure from error


def failed(outcome: Outcome, status: int | None, error: str) -> AttemptFailed:
    """Return a failure of which there is no more to say."""
    return AttemptFailed(Failure(outcome, status, error))


def _checked(base_url: str) -> str:
    parts = urlsplit(base_url)
    http = parts.scheme in ("http", "https") and parts.hostname
    if not http or parts.query or parts.fragment or parts.username:
        raise ValueError(f"base_url of host {parts.hostname!r}: expected http(s)://host[:port]/path and nothing else")
    return base_url.rstrip("/")


async def _require_events(response: UpstreamResponse) -> None:
    content_type = response.headers.get("content-type", "text/event-stream")
    if content_type.partition(";")[0].strip().lower() == "text/event-stream":
        return
    body = await response.read(_MAX_ERROR_BODY_BYTES)
    if "json" in content_type and is_error_object(body):
        raise Reported(body)
    raise Malformed(f"expected text/event-stream, got {content_type[:60]}")


async def _events(
    response: UpstreamResponse, timeouts: Timeouts, reader: EventReader
) -> AsyncGenerator[SseEvent, None]:
    """Yield the events. A connection that breaks after a complete answer ends it all the same.

    Comments keep a connection open but are no answer, so events have the time limits of bytes again.
    """
    loop = asyncio.get_running_loop()
    parser = SseParser()
    outcome = Outcome.TIMEOUT
    due = loop.time() + timeouts.first_byte_s
    try:
        async for part in response.chunks():
            events = parser.feed(part)
            for event in events:
                yield event
            if events:
                outcome = Outcome.STALLED
                due = loop.time() + timeouts.stall_s
            elif loop.time() >= due:
                raise failed(outcome, response.status, "nothing but comments arrived in the time for an event")
    except TransportError:
        if not reader.complete:
            raise
