"""What an adapter takes and gives, whatever the provider's wire protocol.

The rule of this file: a caller's JSON is carried as the bytes it came in. An adapter looks at what it needs (tokens,
finish reasons, errors) and hands the rest on untouched, so big integers, floats, unknown fields and key order survive.
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol

import msgspec

from routing.model import Endpoint
from routing.outcomes import Outcome
from service.providers.transport import Timeouts

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


def _no_headers() -> Mapping[str, str]:
    return NO_HEADERS


class Operation(StrEnum):
    """What is asked of a provider."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"
    RESPONSES = "responses"


class Call(msgspec.Struct, frozen=True):
    """One request as the caller made it. Nothing of its content is in its repr; nor is it in that of what follows.

    Attributes:
        operation: what is asked.
        fields: the top level of the caller's JSON body in its order, each value as the raw JSON it came in. An adapter
            replaces `model`, and what streaming needs; every other value goes upstream byte for byte.
        stream: whether the answer is to come in chunks.
        headers: the caller's headers to send along; those that belong to the connection or to our credentials are not.
        query: the caller's query string, without its question mark.
        request_id: sent as X-Request-Id unless `headers` has one.
    """

    operation: Operation
    fields: Mapping[str, msgspec.Raw]
    stream: bool = False
    headers: Mapping[str, str] = NO_HEADERS
    query: str = ""
    request_id: str = ""

    def __repr__(self) -> str:
        return f"Call({self.operation.value}, stream={self.stream}, request_id={self.request_id!r})"


class Reply(msgspec.Struct, frozen=True):
    """A whole answer: `body` unchanged, `headers` (lower case) those that say something about it or about limits.

    Token counts are None where the provider gave none.
    """

    status: int
    body: bytes
    headers: Mapping[str, str]
    input_tokens: int | None
    output_tokens: int | None

    def __repr__(self) -> str:
        return f"Reply({self.status}, input_tokens={self.input_tokens}, output_tokens={self.output_tokens})"


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed answer.

    Attributes:
        data: its JSON, unchanged.
        has_content: some delta carries content, a tool call, a refusal, reasoning or the like: a token has arrived.
        finish_reason: of a choice that ends with this chunk, else None.
        input_tokens, output_tokens: where the chunk carries usage.
        usage_requested: False only for a chunk of usage alone that the caller did not ask for: it is there for our
            accounting and not to be sent on.
        headers: as in `Reply`, on the first chunk only.
        event: its name, where the wire format names its events; else b"".
    """

    data: bytes
    has_content: bool = False
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    usage_requested: bool = True
    headers: Mapping[str, str] = NO_HEADERS
    event: bytes = b""

    def __repr__(self) -> str:
        return f"Chunk(has_content={self.has_content}, finish_reason={self.finish_reason!r}, event={self.event!r})"


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt failed.

    Attributes:
        outcome: its class; never OK.
        status: the HTTP status, None when there was none.
        error: a short text for logs and attempt lists; holds no secret.
        retry_after_s: what the provider asked for, None when it asked for nothing.
        body: the provider's own error body, None when there was none worth passing on.
        headers: as in `Reply`.
        unsupported: the path of the request's field that the provider's protocol cannot say, with that outcome.
    """

    outcome: Outcome
    status: int | None
    error: str
    retry_after_s: float | None = None
    body: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=_no_headers)
    unsupported: str = ""


class AttemptFailed(Exception):  # noqa: N818 - the noun is the attempt's, as in Failure
    """An attempt came to nothing, or a stream to a bad end; `failure` says how."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.outcome}: {failure.error}")
        self.failure = failure


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One entry of a provider's model list: its id there, and the whole entry as raw JSON."""

    id: str
    raw: bytes = field(repr=False)


class Adapter(Protocol):
    """One provider, spoken to in its own protocol. Every method makes its request once and never retries."""

    async def send(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """Return the whole answer; raises AttemptFailed. Cancelling closes the upstream connection."""
        ...

    def stream(self, call: Call, endpoint: Endpoint, timeouts: Timeouts) -> AsyncGenerator[Chunk, None]:
        """Yield the answer as it arrives; raises AttemptFailed, after any number of chunks.

        A stream that returns was complete. Closing the generator early closes the upstream connection; a caller that
        may leave early wraps it in `contextlib.aclosing`.
        """
        ...

    async def list_models(self, timeouts: Timeouts) -> tuple[ListedModel, ...]:
        """Return what the provider says it serves, in its order; raises AttemptFailed."""
        ...

    async def probe(self, endpoint: Endpoint, timeouts: Timeouts) -> Reply:
        """Make the cheapest request that proves `endpoint` works: one token, or one embedding; raises AttemptFailed."""
        ...
