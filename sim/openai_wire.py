"""The OpenAI wire format as a provider speaks it: requests in, bodies and stream events out.

The rule of this file: it is pure, and every answer follows from the request alone. A reply names the provider, the
number of messages and a digest of them, so a caller can see that its whole history arrived and where.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from sim.scenario import Model, ModelKind

_CHARACTERS_PER_TOKEN = 4
_MAX_OUTPUT_TOKENS = 16_384


class WireError(Exception):
    """A refusal in OpenAI's shape. `headers` go out with it."""

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
        self.headers = dict(headers or {})
        self.body = msgspec.json.encode(
            {"error": {"message": message, "type": kind, "param": param, "code": code}},
        )


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request and its settled answer. `pieces` are the output tokens; joined they are the reply's text."""

    model: Model
    stream: bool
    include_usage: bool
    pieces: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        """Tokens in, out and together."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.pieces),
            "total_tokens": self.prompt_tokens + len(self.pieces),
        }


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """An embeddings request: one vector per input, `dimensions` long, as floats or base64 of little-endian float32."""

    model: Model
    inputs: tuple[str, ...]
    base64: bool
    dimensions: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """The events of a streamed answer: `opening` with the role, one of `content` per token, `closing` to [DONE]."""

    opening: bytes
    content: tuple[bytes, ...] = field(repr=False)
    closing: bytes


def history_digest(messages: Sequence[Any]) -> str:
    """16 hex digits over the messages as JSON with sorted keys and no spaces: equal when the histories are equal."""
    canonical = json.dumps(messages, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def parse_chat(body: bytes, models: Mapping[str, Model], provider: str) -> ChatCall:
    """Check a chat request and settle its answer. `models` is keyed by the provider's own model ids.

    `max_completion_tokens` (or `max_tokens`) cuts the answer; `min_tokens`, an extension known from vLLM, pads it with
    counted words, so that a load test can ask for long answers. Unknown fields are accepted.

    Raises:
        WireError: 400 for a malformed request or one beyond the context window, 404 for an unknown model.
    """
    request = _object(body)
    model = _model(request, models, ModelKind.CHAT)
    messages = _messages(request)
    stream = _flag(request, "stream")
    options = request.get("stream_options")
    if options is not None and not stream:
        raise WireError(400, "'stream_options' is only allowed when 'stream' is enabled.", param="stream_options")
    if options is not None and not isinstance(options, dict):
        raise WireError(400, "Invalid type for 'stream_options': expected an object.", param="stream_options")
    prompt_tokens = sum(_tokens(_text(message.get("content"))) + 4 for message in messages)
    if prompt_tokens > model.context_window:
        raise WireError(
            400,
            f"This model's maximum context length is {model.context_window} tokens. "
            f"However, your messages resulted in {prompt_tokens} tokens.",
            param="messages",
            code="context_length_exceeded",
        )
    limit = _count(request, "max_completion_tokens") or _count(request, "max_tokens") or _MAX_OUTPUT_TOKENS
    words = _reply(provider, messages).split(" ")
    words += [f"word{n}" for n in range(len(words) + 1, (_count(request, "min_tokens") or 0) + 1)]
    pieces = tuple(word if index == 0 else f" {word}" for index, word in enumerate(words[:limit]))
    finish_reason = "length" if len(words) > limit else "stop"
    include_usage = bool(options and _flag(options, "include_usage"))
    return ChatCall(model, stream, include_usage, pieces, finish_reason, prompt_tokens)


def parse_embeddings(body: bytes, models: Mapping[str, Model]) -> EmbeddingCall:
    """Check an embeddings request: text, token ids, or a list of either.

    Raises:
        WireError: 400 for a malformed request, 404 for an unknown model.
    """
    request = _object(body)
    model = _model(request, models, ModelKind.EMBEDDINGS)
    given = request.get("input")
    items = [given] if isinstance(given, str) or _is_token_ids(given) else given
    if not isinstance(items, list) or not items or not all(isinstance(i, str) or _is_token_ids(i) for i in items):
        raise WireError(400, "'input' is required: text, token ids, or a list of either.", param="input")
    encoding = request.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise WireError(400, "Invalid 'encoding_format': expected 'float' or 'base64'.", param="encoding_format")
    dimensions = _count(request, "dimensions") or model.dimensions
    if dimensions > model.dimensions:
        raise WireError(400, f"'dimensions' must be at most {model.dimensions}.", param="dimensions")
    prompt_tokens = sum(_tokens(item) if isinstance(item, str) else len(item) for item in items)
    inputs = tuple(item if isinstance(item, str) else json.dumps(item) for item in items)
    return EmbeddingCall(model, inputs, encoding == "base64", dimensions, prompt_tokens)


def completion_body(call: ChatCall, completion_id: str, created_s: int) -> bytes:
    """The whole answer as one `chat.completion` object."""
    message = {"role": "assistant", "content": "".join(call.pieces), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": call.finish_reason}
    return msgspec.json.encode(
        {
            "id": completion_id,
            "object": "chat.completion",
            "created": created_s,
            "model": call.model.provider_model_id,
            "choices": [choice],
            "usage": call.usage,
        }
    )


def completion_stream(call: ChatCall, completion_id: str, created_s: int) -> StreamPlan:
    """The answer as `chat.completion.chunk` events; with include_usage one more, of no choices, carries the usage."""
    frame: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion.chunk",
        "created": created_s,
        "model": call.model.provider_model_id,
    }
    if call.include_usage:
        frame["usage"] = None

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event({**frame, "choices": [choice]})

    closing = chunk({}, call.finish_reason)
    if call.include_usage:
        closing += _event({**frame, "choices": [], "usage": call.usage})
    return StreamPlan(
        opening=chunk({"role": "assistant", "content": ""}),
        content=tuple(chunk({"content": piece}) for piece in call.pieces),
        closing=closing + b"data: [DONE]\n\n",
    )


def embeddings_body(call: EmbeddingCall) -> bytes:
    """The vectors in the order of the inputs; unit length, the same for the same text on every provider."""
    vectors = (_vector(text, call.dimensions) for text in call.inputs)
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if call.base64 else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}
    return msgspec.json.encode(
        {"object": "list", "data": data, "model": call.model.provider_model_id, "usage": usage},
    )


def models_body(models: Mapping[str, Model], provider: str) -> bytes:
    """The model list under the provider's own ids, with the context length as several providers announce it."""
    data = [
        {
            "id": model.provider_model_id,
            "object": "model",
            "created": 0,
            "owned_by": provider,
            "context_length": model.context_window,
        }
        for model in models.values()
    ]
    return msgspec.json.encode({"object": "list", "data": data})


def _reply(provider: str, messages: Sequence[Mapping[str, Any]]) -> str:
    asked = next((_text(m.get("content")) for m in reversed(messages) if m["role"] == "user"), "")
    return f"{provider} received {len(messages)} messages, digest {history_digest(messages)}, last asked: {asked[:200]}"


def _vector(text: str, dimensions: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    noise = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    vector = np.frombuffer(noise, dtype="<i2").astype("<f4") + np.float32(0.5)
    return vector / np.linalg.norm(vector)


def _event(payload: object) -> bytes:
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _object(body: bytes) -> dict[str, Any]:
    try:
        request = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise WireError(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(request, dict):
        raise WireError(400, "The request body must be a JSON object.")
    return request


def _model(request: Mapping[str, Any], models: Mapping[str, Model], kind: ModelKind) -> Model:
    name = request.get("model")
    if not isinstance(name, str) or not name:
        raise WireError(400, "you must provide a model parameter", param="model")
    model = models.get(name)
    if model is None:
        raise WireError(404, f"The model '{name}' does not exist.", param="model", code="model_not_found")
    if model.kind is not kind:
        raise WireError(404, f"The model '{name}' serves {model.kind}, not {kind}.", param="model")
    return model


def _messages(request: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def _flag(request: Mapping[str, Any], name: str) -> bool:
    value = request.get(name)
    if value is not None and not isinstance(value, bool):
        raise WireError(400, f"Invalid type for '{name}': expected a boolean.", param=name)
    return bool(value)


def _count(request: Mapping[str, Any], name: str) -> int | None:
    value = request.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise WireError(400, f"Invalid '{name}': expected an integer of at least 1.", param=name)
    return value


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str))


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _tokens(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
