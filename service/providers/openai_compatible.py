"""The adapter for every provider that speaks OpenAI's wire format, which is most of them and most local servers.

The rule of this file: the key is known at construction and goes into one header; nothing that leaves here (reply,
failure, repr) holds it, even when a provider's error echoes it.
"""

import asyncio
import dataclasses
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import NoReturn
from urllib.parse import urlsplit

import msgspec

from routing.model import Capability, Endpoint
from routing.outcomes import Outcome
from service.providers.base import AttemptFailed, Call, Chunk, Failure, ListedModel, Operation, Reply
from service.providers.classify import (
    ErrorDetail,
    detail_of,
    error_text,
    of_error_object,
    of_status,
    of_transport_error,
)
from service.providers.openai_wire import (
    PATHS,
    Malformed,
    StreamReader,
    check_reply,
    read_models,
    request_body,
    usage_requested,
)
from service.providers.retry_after import asked_wait_s, retry_after_s
from service.providers.sse import SseError, SseParser
from service.providers.transport import Timeouts, Transport, TransportError, UpstreamRequest, UpstreamResponse

_MAX_BODY_BYTES = 128 * 2**20  # 2,048 embeddings of 3,072 floats in JSON
_MAX_ERROR_BODY_BYTES = 64 * 2**10
_LINGER_S = 0.05  # for the end of a stream's payload after [DONE], so that its connection can be kept
_KEPT_HEADERS = ("x-request-id", "x-ratelimit-", "retry-after", "openai-", "content-type", "x-should-retry")
# They belong to the connection, to the body as we send it, or to our own account with the provider.
_OWN_HEADERS = frozenset((
    "accept", "accept-encoding", "api-key", "authorization", "connection", "content-encoding",
    "content-length", "content-type", "cookie", "expect", "host", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "x-api-key",
))  # fmt: skip
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
_QUERY = re.compile(r"[\x21-\x22\x24-\x7e]*")
_SECRET_CHARACTERS = 8  # shorter values are names and flags, and would be found everywhere
_WAITS: Mapping[Outcome, Callable[[Mapping[str, str], float], float | None]] = {
    Outcome.RATE_LIMITED: retry_after_s,
    Outcome.SERVER_ERROR: asked_wait_s,
}
_PROBES: Mapping[Operation, Mapping[str, object]] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1},
    Operation.EMBEDDINGS: {"input": "ping"},
}


class OpenAICompatible:
    """One provider. An `Adapter`.

    Args:
        base_url: http or https, up to and including the version, as in "https://api.example.com/v1".
        transport: carries the requests; shared between adapters and closed by whoever made it.
        api_key: the key itself; "" sends no Authorization.
        headers: extra headers on every request, such as an organisation.
        stream_usage: ask for usage in streams whose caller did not; off for servers that refuse `stream_options`.
        clock: seconds since the epoch, against which HTTP dates are read.

    Raises:
        ValueError: `base_url` is not such a URL.
    """

    def __init__(
        self,
        base_url: str,
        transport: Transport,
        *,
        api_key: str = "",
        headers: Mapping[str, str] | None = None,
        stream_usage: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(base_url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or parts.username
        ):
            raise ValueError(
                f"base_url of host {parts.hostname!r}: expected http(s)://host[:port]/path and nothing else"
            )
        self._base_url = base_url.rstrip("/")
        self._transport = transport
        self._stream_usage = stream_usage
        self._clock = clock
        fixed = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._headers = tuple((fixed | dict(headers or {})).items())
        self._secrets = tuple(v.encode() for v in (api_key, *(headers or {}).values()) if len(v) >= _SECRET_CHARACTERS)
        self._own = _OWN_HEADERS | {name.lower() for name, _ in self._headers}

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._base_url!r})"

    async def send(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """See `Adapter.send`."""
        async with self._exchange(self._request(call, endpoint, timeouts)) as response:
            body = await response.read(_MAX_BODY_BYTES)
            (input_tokens, output_tokens), is_error = check_reply(body, call.operation)
            if is_error:
                raise self._reported(response, body)
            return Reply(response.status, body, _kept(response.headers), input_tokens, output_tokens)

    async def stream(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> AsyncGenerator[Chunk, None]:
        """See `Adapter.stream`."""
        async with self._exchange(self._request(call, endpoint, timeouts)) as response:
            await self._require_events(response)
            reader = StreamReader(usage_requested=usage_requested(call))
            opening = _kept(response.headers)
            async with aclosing(_events(response, timeouts, reader)) as events:
                async for data in events:
                    chunk = reader.read(data)
                    if chunk is None:
                        raise self._reported(response, data)
                    if opening:
                        chunk = dataclasses.replace(chunk, headers=opening)
                        opening = {}
                    yield chunk
            if not reader.complete:
                raise _failed(Outcome.TRUNCATED, response.status, "the stream ended without finish_reason or [DONE]")
            await response.finish(_LINGER_S)

    async def list_models(self, timeouts: Timeouts) -> tuple[ListedModel, ...]:
        """See `Adapter.list_models`."""
        headers = (*self._headers, ("Accept", "application/json"))
        request = UpstreamRequest("GET", f"{self._base_url}/models", headers, b"", timeouts)
        async with self._exchange(request) as response:
            listed = read_models(await response.read(_MAX_BODY_BYTES))
        return tuple(ListedModel(model_id, raw) for model_id, raw in listed)

    async def probe(self, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """See `Adapter.probe`."""
        chat = Capability.CHAT in endpoint.capabilities
        operation = Operation.CHAT if chat else Operation.EMBEDDINGS
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in _PROBES[operation].items()}
        return await self.send(Call(operation, fields), endpoint, timeouts)

    def _request(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> UpstreamRequest:
        url = f"{self._base_url}{PATHS[call.operation]}"
        if call.query:
            if not _QUERY.fullmatch(call.query):
                raise _failed(Outcome.CLIENT_ERROR, None, "query: expected printable ASCII without space or '#'")
            url = f"{url}?{call.query}"
        headers = [*self._headers, ("Content-Type", "application/json")]
        headers.append(("Accept", "text/event-stream" if call.stream else "application/json"))
        names = set()
        for name, value in call.headers.items():
            lower = name.lower()
            if lower in self._own:
                continue
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise _failed(Outcome.CLIENT_ERROR, None, f"header {name!r}: expected a token and printable ASCII")
            names.add(lower)
            headers.append((name, value))
        if call.request_id and "x-request-id" not in names:
            headers.append(("X-Request-Id", call.request_id))
        body = request_body(call, endpoint.provider_model, ask_usage=self._stream_usage)
        return UpstreamRequest("POST", url, tuple(headers), body, timeouts)

    @asynccontextmanager
    async def _exchange(self, request: UpstreamRequest) -> AsyncIterator[UpstreamResponse]:
        """One request and its 2xx response, let go of at the end; whatever goes wrong becomes AttemptFailed."""
        status = None
        try:
            response = await self._transport.open(request)
            status = response.status
            try:
                if not 200 <= status < 300:
                    await self._refused(response)
                yield response
            finally:
                await response.aclose()
        except TransportError as error:
            raise _failed(of_transport_error(error), status, str(error)) from error
        except (Malformed, SseError) as error:
            raise _failed(Outcome.MALFORMED, status, str(error)) from error

    async def _refused(self, response: UpstreamResponse) -> NoReturn:
        try:
            body = await response.read(_MAX_ERROR_BODY_BYTES)
        except TransportError:
            body = b""  # the status has said what counts
        detail = detail_of(self._without_secrets(body))
        raise self._failure(of_status(response.status, detail), detail, response, body)

    def _reported(self, response: UpstreamResponse, body: bytes) -> AttemptFailed:
        """An error object that came under a good status."""
        detail = detail_of(self._without_secrets(body))
        return self._failure(of_error_object(detail), detail, response, body)

    def _failure(self, outcome: Outcome, detail: ErrorDetail, response: UpstreamResponse, body: bytes) -> AttemptFailed:
        kept = _kept(response.headers)
        wait = _WAITS.get(outcome)
        wait_s = wait(kept, self._clock()) if wait else None
        text = error_text(detail, outcome, response.status)
        return AttemptFailed(Failure(outcome, response.status, text, wait_s, self._without_secrets(body) or None, kept))

    def _without_secrets(self, body: bytes) -> bytes:
        for secret in self._secrets:
            body = body.replace(secret, b"***")
        return body

    async def _require_events(self, response: UpstreamResponse) -> None:
        content_type = response.headers.get("content-type", "text/event-stream")
        if content_type.partition(";")[0].strip().lower() == "text/event-stream":
            return
        body = await response.read(_MAX_ERROR_BODY_BYTES)
        if "json" in content_type and check_reply(body, Operation.CHAT)[1]:
            raise self._reported(response, body)
        raise Malformed(f"expected text/event-stream, got {content_type[:60]}")


async def _events(response: UpstreamResponse, timeouts: Timeouts, reader: StreamReader) -> AsyncGenerator[bytes, None]:
    """Yield the data of each event up to [DONE]. A connection that breaks after a complete answer ends it all the same.

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
                if event.data == b"[DONE]":
                    reader.done = True
                    return
                yield event.data
            if events:
                outcome = Outcome.STALLED
                due = loop.time() + timeouts.stall_s
            elif loop.time() >= due:
                raise _failed(outcome, response.status, "nothing but comments arrived in the time for an event")
    except TransportError:
        if not reader.complete:
            raise


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    lowered = ((name.lower(), value) for name, value in headers.items())
    return {name: value for name, value in lowered if name.startswith(_KEPT_HEADERS)}


def _failed(outcome: Outcome, status: int | None, error: str) -> AttemptFailed:
    return AttemptFailed(Failure(outcome, status, error))
