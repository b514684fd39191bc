"""The adapter for Anthropic's Messages API: chat in OpenAI's words on our side, Messages on the provider's.

The rule of this file: translation is done elsewhere, purely; here is only who is asked, and with which headers.
"""

import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping

import msgspec
from msgspec.structs import replace

from routing.model import Endpoint
from routing.outcomes import Outcome
from service.providers.anthropic_reply import StreamReader, completion, error_body, kept_headers, read_models
from service.providers.anthropic_request import Untranslatable, translate
from service.providers.base import AttemptFailed, Call, Chunk, Failure, ListedModel, Operation, Reply
from service.providers.classify import is_error_object
from service.providers.openai_wire import check_reply, usage_requested
from service.providers.quality import wants_json
from service.providers.reader import Reported
from service.providers.transport import Timeouts, Transport
from service.providers.upstream import MAX_BODY_BYTES, Dialect, Prepared, Upstream

API_VERSION = "2023-06-01"
MAX_TOKENS = 4096
LEFT_OUT = "x-routecast-left-out"
_FIELD = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # others would break out of a header
_PATH = "/v1/messages"
_ALL_MODELS = "/v1/models?limit=1000"
_DIALECT = Dialect(kept_headers, error_body)
_PING: Mapping[str, object] = {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}


class AnthropicMessages:
    """One provider that speaks Messages. An `Adapter`.

    Fields of a request that Messages does not know are named in the answer's `x-routecast-left-out`.

    Args:
        base_url: http or https, without the version, as in "https://api.anthropic.com".
        transport: carries the requests; shared between adapters and closed by whoever made it.
        api_key: the key itself; "" sends none.
        headers: extra headers on every request, such as `anthropic-beta`.
        api_version: sent as `anthropic-version`.
        max_tokens: sent for requests that set no limit, for Messages demands one.
        clock: seconds since the epoch, for HTTP dates and for `created`.

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
        api_version: str = API_VERSION,
        max_tokens: int = MAX_TOKENS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        credentials = {"x-api-key": api_key} if api_key else {}
        self._upstream = Upstream(
            base_url,
            transport,
            credentials=credentials,
            headers=headers,
            version={"anthropic-version": api_version},
            dialect=_DIALECT,
            clock=clock,
        )
        self._max_tokens = max_tokens
        self._clock = clock

    def __repr__(self) -> str:
        return f"AnthropicMessages({self._upstream.base_url!r})"

    async def send(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """See `Adapter.send`."""
        request, own_headers = self._request(call, endpoint, timeouts)
        async with self._upstream.exchange(request) as response:
            body = await response.read(MAX_BODY_BYTES)
            if is_error_object(body):
                raise Reported(body)
            answer = completion(body, int(self._clock()))
            input_tokens, output_tokens = check_reply(answer, call.operation, json=wants_json(call))
            headers = self._upstream.kept(response) | own_headers
            return Reply(response.status, answer, headers, input_tokens, output_tokens)

    def stream(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> AsyncGenerator[Chunk, None]:
        """See `Adapter.stream`."""
        reader = StreamReader(created=int(self._clock()), usage_requested=usage_requested(call))
        return self._upstream.stream(lambda: self._request(call, endpoint, timeouts), reader)

    async def list_models(self, timeouts: Timeouts) -> tuple[ListedModel, ...]:
        """See `Adapter.list_models`."""
        async with self._upstream.exchange(self._upstream.get(_ALL_MODELS, timeouts)) as response:
            listed = read_models(await response.read(MAX_BODY_BYTES))
        return tuple(ListedModel(model_id, raw) for model_id, raw in listed)

    async def probe(self, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """See `Adapter.probe`."""
        fields = {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in _PING.items()}
        return await self.send(Call(Operation.CHAT, fields), endpoint, timeouts)

    def _request(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> Prepared:
        if call.operation is not Operation.CHAT:
            raise _unsupported("", f"this provider's protocol has no {call.operation}")
        try:
            made = translate(call, endpoint.provider_model, self._max_tokens)
        except Untranslatable as error:
            raise _unsupported(error.field, str(error)) from None
        # Headers and query were written for OpenAI: those of its own mean nothing here.
        headers = {name: value for name, value in call.headers.items() if not name.lower().startswith("openai-")}
        request = self._upstream.post(replace(call, headers=headers), _PATH, made.body, timeouts)
        return request, {LEFT_OUT: ", ".join(map(_shown, made.left_out))} if made.left_out else {}


def _unsupported(field: str, error: str) -> AttemptFailed:
    return AttemptFailed(Failure(Outcome.UNSUPPORTED, None, error, unsupported=field))


def _shown(name: str) -> str:
    return name if _FIELD.fullmatch(name) else "?"
