"""OpenAI's wire format as a provider speaks it: chat completions, embeddings, responses, models.

The rule of this file: it is pure; see `wire` for what a reply says.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from sim import responses_wire
from sim.quota import Allowance, Quota
from sim.scenario import Model, ModelKind
from sim.wire import (
    Answer,
    Request,
    StreamPlan,
    WireError,
    asked_count,
    asked_flag,
    asked_messages,
    asked_model,
    context_exceeded,
    event,
    in_pieces,
    json_object,
    prompt_tokens,
    spoken_pieces,
    tokens_of,
    tool_arguments,
)

_MAX_OUTPUT_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A chat request and its settled answer. `pieces` are the output tokens; joined they are the reply's text, or the
    arguments of a call of `tool`.
    """

    model: Model
    stream: bool
    include_usage: bool
    pieces: tuple[str, ...]
    finish_reason: str
    prompt_tokens: int
    tool: str | None = None

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


class OpenAIWire:
    """OpenAI's wire format. A `Wire`. `models` is keyed by the provider's own model ids."""

    root = "/v1"

    def __init__(self, provider: str, models: Mapping[str, Model]) -> None:
        self._provider = provider
        self._models = models

    def answer(self, request: Request) -> Answer:
        """See `Wire.answer`."""
        match request.method, request.path:
            case "POST", "/v1/chat/completions":
                return chat_answer(parse_chat(request.body, self._models, self._provider))
            case "POST", "/v1/embeddings":
                return embeddings_answer(parse_embeddings(request.body, self._models))
            case "POST", "/v1/responses":
                return responses_wire.answer(request.body, self._models, self._provider)
            case "GET", "/v1/models":
                return Answer(lambda _id, _now: models_body(self._models, self._provider), immediate=True)
            case method, path:
                raise WireError(404, f"Invalid URL ({method} {path})")

    def authorised(self, request: Request, api_key: str) -> bool:
        """See `Wire.authorised`."""
        return request.headers.get("authorization") == f"Bearer {api_key}"

    def error_body(self, error: WireError, request_id: str) -> bytes:  # noqa: ARG002  # OpenAI names it in a header
        """See `Wire.error_body`."""
        said = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
        return msgspec.json.encode({"error": said})

    def id_headers(self, request_id: str) -> dict[str, str]:
        """See `Wire.id_headers`."""
        return {"x-request-id": request_id}

    def limit_headers(self, unit: str, quota: Quota, allowance: Allowance) -> dict[str, str]:
        """See `Wire.limit_headers`."""
        return {
            f"x-ratelimit-limit-{unit}": str(quota.limit),
            f"x-ratelimit-remaining-{unit}": str(allowance.remaining),
            f"x-ratelimit-reset-{unit}": f"{allowance.reset_s:.3f}s",
        }


def chat_answer(call: ChatCall) -> Answer:
    """How a chat request is answered."""
    return Answer(
        whole=lambda answer_id, now: completion_body(call, f"chatcmpl-{answer_id}", now),
        stream=(lambda answer_id, now: completion_stream(call, f"chatcmpl-{answer_id}", now)) if call.stream else None,
        quota_tokens=call.usage["total_tokens"],
        output_tokens=len(call.pieces),
    )


def embeddings_answer(call: EmbeddingCall) -> Answer:
    """How an embeddings request is answered."""
    return Answer(lambda _id, _now: embeddings_body(call), quota_tokens=call.prompt_tokens)


def parse_chat(body: bytes, models: Mapping[str, Model], provider: str) -> ChatCall:
    """Check a chat request and settle its answer. `models` is keyed by the provider's own model ids.

    `max_completion_tokens` (or `max_tokens`) cuts the answer; `min_tokens`, an extension known from vLLM, pads it with
    counted words, so that a load test can ask for long answers. A `tool_choice` that demands a tool gets a call of the
    named one, else the first. Unknown fields are accepted.

    Raises:
        WireError: 400 for a malformed request or one beyond the context window, 404 for an unknown model.
    """
    request = json_object(body)
    model = asked_model(request, models, ModelKind.CHAT)
    messages = asked_messages(request)
    stream = asked_flag(request, "stream")
    options = request.get("stream_options")
    if options is not None and not stream:
        raise WireError(400, "'stream_options' is only allowed when 'stream' is enabled.", param="stream_options")
    if options is not None and not isinstance(options, dict):
        raise WireError(400, "Invalid type for 'stream_options': expected an object.", param="stream_options")
    tokens = prompt_tokens(messages)
    if tokens > model.context_window:
        raise context_exceeded(model.context_window, tokens)
    limit = asked_count(request, "max_completion_tokens") or asked_count(request, "max_tokens") or _MAX_OUTPUT_TOKENS
    include_usage = bool(options and asked_flag(options, "include_usage"))
    if tool := _demanded_tool(request):
        pieces = tuple(in_pieces(tool_arguments(provider, messages)))
        return ChatCall(model, stream, include_usage, pieces, "tool_calls", tokens, tool)
    pieces = spoken_pieces(provider, messages, asked_count(request, "min_tokens") or 0, limit)
    finish_reason = "length" if len(pieces) > limit else "stop"
    return ChatCall(model, stream, include_usage, pieces[:limit], finish_reason, tokens)


def _demanded_tool(request: Mapping[str, Any]) -> str | None:
    choice = request.get("tool_choice")
    try:
        if choice == "required":
            return str(request["tools"][0]["function"]["name"])
        return str(choice["function"]["name"]) if isinstance(choice, dict) else None
    except (LookupError, TypeError):
        raise WireError(400, "Invalid 'tool_choice': expected tools to choose from.", param="tool_choice") from None


def parse_embeddings(body: bytes, models: Mapping[str, Model]) -> EmbeddingCall:
    """Check an embeddings request: text, token ids, or a list of either.

    Raises:
        WireError: 400 for a malformed request, 404 for an unknown model.
    """
    request = json_object(body)
    model = asked_model(request, models, ModelKind.EMBEDDINGS)
    given = request.get("input")
    items = [given] if isinstance(given, str) or _is_token_ids(given) else given
    if not isinstance(items, list) or not items or not all(isinstance(i, str) or _is_token_ids(i) for i in items):
        raise WireError(400, "'input' is required: text, token ids, or a list of either.", param="input")
    encoding = request.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        raise WireError(400, "Invalid 'encoding_format': expected 'float' or 'base64'.", param="encoding_format")
    dimensions = asked_count(request, "dimensions") or model.dimensions
    if dimensions > model.dimensions:
        raise WireError(400, f"'dimensions' must be at most {model.dimensions}.", param="dimensions")
    prompt = sum(tokens_of(item) if isinstance(item, str) else len(item) for item in items)
    inputs = tuple(item if isinstance(item, str) else json.dumps(item) for item in items)
    return EmbeddingCall(model, inputs, encoding == "base64", dimensions, prompt)


def completion_body(call: ChatCall, completion_id: str, created_s: int) -> bytes:
    """The whole answer as one `chat.completion` object."""
    text = "".join(call.pieces)
    message: dict[str, Any] = {"role": "assistant", "content": None if call.tool else text, "refusal": None}
    if call.tool:
        message["tool_calls"] = [_tool_call(call.tool, completion_id, text)]
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

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**frame, "choices": [choice]})

    closing = chunk({}, call.finish_reason)
    if call.include_usage:
        closing += event({**frame, "choices": [], "usage": call.usage})
    opening = {"role": "assistant", "content": None if call.tool else ""}
    if not call.tool:
        content = [chunk({"content": piece}) for piece in call.pieces]
    else:
        first = {"index": 0, **_tool_call(call.tool, completion_id, "")}
        parts = [{"index": 0, "function": {"arguments": piece}} for piece in call.pieces]
        content = [chunk({"tool_calls": [part]}) for part in (first, *parts)]
    return StreamPlan(chunk(opening), tuple(content), closing + b"data: [DONE]\n\n")


def _tool_call(name: str, completion_id: str, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{completion_id}", "type": "function", "function": {"name": name, "arguments": arguments}}


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


def _vector(text: str, dimensions: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    noise = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    vector = np.frombuffer(noise, dtype="<i2").astype("<f4") + np.float32(0.5)
    return vector / np.linalg.norm(vector)


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
