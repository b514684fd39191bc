"""The adapter for every provider that speaks OpenAI's wire format, which is most of them and most local servers."""

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Protocol

import msgspec

from routing.model import Capability, Endpoint
from service.providers import responses_wire
from service.providers.base import Call, Chunk, ListedModel, Operation, Reply
from service.providers.openai_wire import PATHS, StreamReader, check_reply, read_models, request_body, usage_requested
from service.providers.quality import wants_json
from service.providers.reader import EventReader
from service.providers.transport import Timeouts, Transport, UpstreamRequest
from service.providers.upstream import MAX_BODY_BYTES, Upstream

_PROBES: Mapping[Operation, Mapping[str, object]] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1},
    Operation.EMBEDDINGS: {"input": "ping"},
    Operation.RESPONSES: {"input": "ping", "max_output_tokens": 16, "store": False},  # 16 is the least that is taken
}


class Addresses(Protocol):
    """Where below the base URL a provider answers, and how it takes the key."""

    def credentials(self, api_key: str) -> Mapping[str, str]:
        """Return the headers that carry the key."""
        ...

    def locate(self, operation: Operation, provider_model: str, query: str) -> tuple[str, str]:
        """Return the path and the query of a call, given the caller's query."""
        ...

    def models(self) -> str:
        """Return the path, with its query, of the list of models."""
        ...


class OpenAIAddresses:
    """OpenAI's own: a bearer token, one path per operation, the model in the body."""

    def credentials(self, api_key: str) -> Mapping[str, str]:
        """See `Addresses`."""
        return {"Authorization": f"Bearer {api_key}"}

    def locate(self, operation: Operation, provider_model: str, query: str) -> tuple[str, str]:  # noqa: ARG002
        """See `Addresses`."""
        return PATHS[operation], query

    def models(self) -> str:
        """See `Addresses`."""
        return "/models"


class OpenAICompatible:
    """One provider. An `Adapter`.

    Args:
        base_url: http or https, up to and including the version, as in "https://api.example.com/v1".
        transport: carries the requests; shared between adapters and closed by whoever made it.
        api_key: the key itself; "" sends no credentials.
        headers: extra headers on every request, such as an organisation.
        stream_usage: ask for usage in streams whose caller did not; off for servers that refuse `stream_options`.
        addresses: where it answers, when that is not where OpenAI does.
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
        addresses: Addresses | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._addresses = addresses or OpenAIAddresses()
        credentials = self._addresses.credentials(api_key) if api_key else {}
        self._upstream = Upstream(base_url, transport, credentials=credentials, headers=headers, clock=clock)
        self._stream_usage = stream_usage

    def __repr__(self) -> str:
        return f"OpenAICompatible({self._upstream.base_url!r})"

    async def send(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """See `Adapter.send`."""
        upstream = self._upstream
        async with upstream.exchange(self._request(call, endpoint, timeouts)) as response:
            body = await response.read(MAX_BODY_BYTES)
            if call.operation is Operation.RESPONSES:
                input_tokens, output_tokens = responses_wire.check_reply(body)
            else:
                input_tokens, output_tokens = check_reply(body, call.operation, json=wants_json(call))
            return Reply(response.status, body, upstream.kept(response), input_tokens, output_tokens)

    def stream(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> AsyncGenerator[Chunk, None]:
        """See `Adapter.stream`."""
        reader: EventReader
        if call.operation is Operation.RESPONSES:
            reader = responses_wire.StreamReader()
        else:
            reader = StreamReader(usage_requested=usage_requested(call))
        return self._upstream.stream(lambda: (self._request(call, endpoint, timeouts), {}), reader)

    async def list_models(self, timeouts: Timeouts) -> tuple[ListedModel, ...]:
        """See `Adapter.list_models`."""
        async with self._upstream.exchange(self._upstream.get(self._addresses.models(), timeouts)) as response:
            listed = read_models(await response.read(MAX_BODY_BYTES))
        return tuple(ListedModel(model_id, raw) for model_id, raw in listed)

    async def probe(self, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """See `Adapter.probe`."""
        operation = _cheapest(endpoint.capabilities)
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in _PROBES[operation].items()}
        return await self.send(Call(operation, fields), endpoint, timeouts)

    def _request(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> UpstreamRequest:
        model, operation = endpoint.provider_model, call.operation
        body = request_body(call, model, ask_usage=self._stream_usage and operation is Operation.CHAT)
        path, query = self._addresses.locate(operation, model, call.query)
        return self._upstream.post(call, path, body, timeouts, query=query)


def _cheapest(capabilities: frozenset[Capability]) -> Operation:
    if Capability.CHAT in capabilities:
        return Operation.CHAT
    return Operation.EMBEDDINGS if Capability.EMBEDDINGS in capabilities else Operation.RESPONSES
