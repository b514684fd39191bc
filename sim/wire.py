"""What the wire formats of simulated providers share: how a request is understood, refused, and answered.

The rule of this file: it is pure, and every answer follows from the request alone. A reply names the provider, the
number of messages and a digest of them, so a caller can see that its whole history arrived and where.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from sim.quota import Allowance, Quota
from sim.scenario import Model, ModelKind

_CHARACTERS_PER_TOKEN = 4


class WireError(Exception):
    """A refusal; each wire format writes it in its own shape. `headers` go out with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived. `headers` have lower-case names."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The events of a streamed answer: `opening` before the first token, one of `content` per token, `closing`."""

    opening: bytes
    content: tuple[bytes, ...] = field(repr=False)
    closing: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request will be answered, if nothing befalls it.

    Attributes:
        whole: the body, given the answer's id and its time in seconds since the epoch.
        stream: the events instead, None when the request did not ask for them.
        quota_tokens: what it takes of token quotas.
        output_tokens: what it takes time to generate.
        immediate: it needs no place and no time, as a list of models.
    """

    whole: Callable[[str, int], bytes]
    stream: Callable[[str, int], StreamPlan] | None = None
    quota_tokens: int = 0
    output_tokens: int = 0
    immediate: bool = False


class Wire(Protocol):
    """One wire format as one provider speaks it."""

    root: str
    """Path of the base URL that a client is given."""

    def answer(self, request: Request) -> Answer:
        """Understand a request; raises WireError."""
        ...

    def authorised(self, request: Request, api_key: str) -> bool:
        """Does the request carry the key?"""
        ...

    def error_body(self, error: WireError, request_id: str) -> bytes:
        """Return a refusal as this format writes it."""
        ...

    def id_headers(self, request_id: str) -> dict[str, str]:
        """Return the header that names the request."""
        ...

    def limit_headers(self, unit: str, quota: Quota, allowance: Allowance) -> dict[str, str]:
        """Return the headers about one limit."""
        ...


def history_digest(messages: Sequence[Any]) -> str:
    """16 hex digits over the messages as JSON with sorted keys and no spaces: equal when the histories are equal."""
    canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def spoken_reply(provider: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """What a simulated model answers."""
    asked = next((text_of(m.get("content")) for m in reversed(messages) if m["role"] == "user"), "")
    return f"{provider} received {len(messages)} messages, digest {history_digest(messages)}, last asked: {asked[:200]}"


def spoken_pieces(provider: str, messages: Sequence[Mapping[str, Any]], least: int, most: int) -> tuple[str, ...]:
    """The answer as output tokens, padded with counted words to `least`, all of them even if more than `most`."""
    words = spoken_reply(provider, messages).split(" ")
    words += [f"word{n}" for n in range(len(words) + 1, least + 1)]
    return tuple(word if index == 0 else f" {word}" for index, word in enumerate(words[: most + 1]))


def tool_arguments(provider: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """The arguments of a simulated tool call, as JSON: they show like a reply who was asked, and what."""
    return json.dumps({"provider": provider, "digest": history_digest(messages)})


def in_pieces(text: str, size: int = 12) -> list[str]:
    """Cut text as providers cut the arguments of a streamed tool call."""
    return [text[at : at + size] for at in range(0, len(text), size)]


def prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """A rule of thumb, as with `tokens_of`."""
    return sum(tokens_of(text_of(message.get("content"))) + 4 for message in messages)


def json_object(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object; raises WireError."""
    try:
        request = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise WireError(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(request, dict):
        raise WireError(400, "The request body must be a JSON object.")
    return request


def asked_model(request: Mapping[str, Any], models: Mapping[str, Model], kind: ModelKind) -> Model:
    """Return the model a request names; raises WireError."""
    name = request.get("model")
    if not isinstance(name, str) or not name:
        raise WireError(400, "you must provide a model parameter", param="model")
    model = models.get(name)
    if model is None:
        raise WireError(404, f"The model '{name}' does not exist.", param="model", code="model_not_found")
    if model.kind is not kind:
        raise WireError(404, f"The model '{name}' serves {model.kind}, not {kind}.", param="model")
    return model


def asked_messages(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a request; raises WireError."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise WireError(400, "'messages' is required: a list of at least one message.", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise WireError(400, f"'messages[{index}]' must be an object with a 'role'.", param=f"messages[{index}]")
        if not isinstance(message.get("content"), str | list | None):
            param = f"messages[{index}].content"
            raise WireError(400, f"'{param}' must be text, a list of parts, or null.", param=param)
    return messages


def asked_flag(request: Mapping[str, Any], name: str) -> bool:
    """Return a boolean field, False when absent; raises WireError."""
    value = request.get(name)
    if value is not None and not isinstance(value, bool):
        raise WireError(400, f"Invalid type for '{name}': expected a boolean.", param=name)
    return bool(value)


def asked_count(request: Mapping[str, Any], name: str) -> int | None:
    """Return a field that counts something, None when absent; raises WireError."""
    value = request.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise WireError(400, f"Invalid '{name}': expected an integer of at least 1.", param=name)
    return value


def text_of(content: object) -> str:
    """The text of a message's content, its parts joined by spaces."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def tokens_of(text: str) -> int:
    """A rule of thumb: four characters a token."""
    return -(-len(text) // _CHARACTERS_PER_TOKEN)


def event(payload: object, name: str = "") -> bytes:
    """One server-sent event."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + msgspec.json.encode(payload) + b"\n\n"


def context_exceeded(window: int, tokens: int) -> WireError:
    """The refusal of a prompt beyond the context window."""
    message = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {tokens} tokens."
    )
    return WireError(400, message, param="messages", code="context_length_exceeded")
