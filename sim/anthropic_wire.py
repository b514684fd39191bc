"""Anthropic's Messages API as a provider speaks it.

The rule of this file: it is pure; see `wire` for what a reply says. It is as strict as the real one where clients go
wrong: `max_tokens` is required, roles are user and assistant, and tool results answer the turn before.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

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
    event,
    in_pieces,
    json_object,
    prompt_tokens,
    spoken_pieces,
    text_of,
    tokens_of,
    tool_arguments,
)

_KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error", 529: "overloaded_error"}  # fmt: skip


class AnthropicWire:
    """The Messages API. A `Wire`. `models` is keyed by the provider's own model ids."""

    root = ""

    def __init__(self, provider: str, models: Mapping[str, Model]) -> None:
        self._provider = provider
        self._models = models

    def answer(self, request: Request) -> Answer:
        """See `Wire.answer`."""
        if "anthropic-version" not in request.headers:
            raise WireError(400, "anthropic-version: header is required")
        match request.method, request.path:
            case "POST", "/v1/messages":
                return self._message(json_object(request.body))
            case "GET", "/v1/models":
                return Answer(lambda _id, _now: _models_body(self._models), immediate=True)
        raise WireError(404, "Not Found")

    def authorised(self, request: Request, api_key: str) -> bool:
        """See `Wire.authorised`."""
        return request.headers.get("x-api-key") == api_key

    def error_body(self, error: WireError, request_id: str) -> bytes:
        """See `Wire.error_body`."""
        kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        said = {"type": kind, "message": error.message}
        return msgspec.json.encode({"type": "error", "error": said, "request_id": request_id})

    def id_headers(self, request_id: str) -> dict[str, str]:
        """See `Wire.id_headers`."""
        return {"request-id": request_id}

    def limit_headers(self, unit: str, quota: Quota, allowance: Allowance) -> dict[str, str]:
        """See `Wire.limit_headers`."""
        resets = datetime.fromtimestamp(datetime.now(UTC).timestamp() + allowance.reset_s, UTC)
        return {
            f"anthropic-ratelimit-{unit}-limit": str(quota.limit),
            f"anthropic-ratelimit-{unit}-remaining": str(allowance.remaining),
            f"anthropic-ratelimit-{unit}-reset": resets.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def _message(self, request: dict[str, Any]) -> Answer:
        model = asked_model(request, self._models, ModelKind.CHAT)
        limit = asked_count(request, "max_tokens")
        if limit is None:
            raise WireError(400, "max_tokens: Field required")
        messages = asked_messages(request)
        _check_turns(messages)
        prompt = prompt_tokens(messages) + tokens_of(text_of(request.get("system")))
        if prompt + limit > model.context_window:
            window = model.context_window
            raise WireError(400, f"input length and `max_tokens` exceed context limit: {prompt} + {limit} > {window}")
        tool = _demanded_tool(request)
        if tool is None:
            spoken = spoken_pieces(self._provider, messages, 0, limit)
            pieces, stop = spoken[:limit], "max_tokens" if len(spoken) > limit else "end_turn"
        else:
            pieces, stop = tuple(in_pieces(tool_arguments(self._provider, messages))), "tool_use"

        def head(answer_id: str) -> dict[str, Any]:
            named = {"id": f"msg_{answer_id}", "type": "message", "role": "assistant"}
            return {**named, "model": model.provider_model_id, "stop_sequence": None}

        def whole(answer_id: str, _now: int) -> bytes:
            text = "".join(pieces)
            block: dict[str, Any] = {"type": "text", "text": text}
            if tool is not None:
                block = {**_tool_use(tool, answer_id), "input": msgspec.json.decode(text)}
            usage = {"input_tokens": prompt, "output_tokens": len(pieces)}
            return msgspec.json.encode({**head(answer_id), "content": [block], "stop_reason": stop, "usage": usage})

        def stream(answer_id: str, _now: int) -> StreamPlan:
            begun = {**head(answer_id), "content": [], "stop_reason": None}
            begun["usage"] = {"input_tokens": prompt, "output_tokens": 1}
            block = {"type": "text", "text": ""} if tool is None else {**_tool_use(tool, answer_id), "input": {}}
            return _plan(begun, block, pieces, stop)

        streamed = asked_flag(request, "stream")
        return Answer(whole, stream if streamed else None, prompt + len(pieces), len(pieces))


def _check_turns(messages: list[dict[str, Any]]) -> None:
    called: set[str] = set()
    for index, message in enumerate(messages):
        if message["role"] not in ("user", "assistant"):
            raise WireError(400, f"messages.{index}.role: Input should be 'user' or 'assistant'")
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        answered = {b.get("tool_use_id") for b in blocks if b.get("type") == "tool_result"}
        if answered != called:
            raise WireError(400, f"messages.{index}: `tool_use` ids must be answered by the `tool_result` blocks after")
        called = {b["id"] for b in blocks if b.get("type") == "tool_use"}


def _demanded_tool(request: Mapping[str, Any]) -> str | None:
    choice = request.get("tool_choice") or {}
    try:
        if choice.get("type") == "any":
            return str(request["tools"][0]["name"])
        return str(choice["name"]) if choice.get("type") == "tool" else None
    except (LookupError, TypeError, AttributeError):
        raise WireError(400, "tool_choice: expected tools to choose from") from None


def _tool_use(name: str, answer_id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{answer_id}", "name": name}


def _plan(begun: dict[str, Any], block: dict[str, Any], pieces: tuple[str, ...], stop: str) -> StreamPlan:
    def told(kind: str, **fields: object) -> bytes:
        return event({"type": kind, **fields}, kind)

    def delta(piece: str) -> dict[str, str]:
        if block["type"] == "text":
            return {"type": "text_delta", "text": piece}
        return {"type": "input_json_delta", "partial_json": piece}

    opening = told("message_start", message=begun) + told("content_block_start", index=0, content_block=block)
    ended = {"stop_reason": stop, "stop_sequence": None}
    return StreamPlan(
        opening=opening + told("ping"),
        content=tuple(told("content_block_delta", index=0, delta=delta(piece)) for piece in pieces),
        closing=told("content_block_stop", index=0)
        + told("message_delta", delta=ended, usage={"output_tokens": len(pieces)})
        + told("message_stop"),
    )


def _models_body(models: Mapping[str, Model]) -> bytes:
    data = [
        {"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"} for name in models
    ]
    return msgspec.json.encode({"data": data, "has_more": False, "first_id": None, "last_id": None})
