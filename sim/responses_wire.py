"""OpenAI's Responses API as a provider speaks it, whole and as typed events.

The rule of this file: it is pure; see `wire` for what a reply says.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any

import msgspec

from sim.scenario import Model, ModelKind
from sim.wire import (
    Answer,
    StreamPlan,
    WireError,
    asked_count,
    asked_flag,
    asked_model,
    context_exceeded,
    event,
    json_object,
    prompt_tokens,
    spoken_pieces,
)

_MAX_OUTPUT_TOKENS = 16_384


def answer(body: bytes, models: Mapping[str, Model], provider: str) -> Answer:
    """Check a request and settle its answer: `input` as text or as a list of messages, cut by `max_output_tokens`.

    Raises:
        WireError: 400 for a malformed request or one beyond the context window, 404 for an unknown model.
    """
    request = json_object(body)
    model = asked_model(request, models, ModelKind.CHAT)
    given = request.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise WireError(400, "'input' is required: text, or a list of messages.", param="input")
    prompt = prompt_tokens(messages)
    if prompt > model.context_window:
        raise context_exceeded(model.context_window, prompt)
    limit = asked_count(request, "max_output_tokens") or _MAX_OUTPUT_TOKENS
    pieces = spoken_pieces(provider, messages, 0, limit)
    cut = len(pieces) > limit
    pieces = pieces[:limit]
    usage = {"input_tokens": prompt, "output_tokens": len(pieces), "total_tokens": prompt + len(pieces)}

    def whole(answer_id: str, now: int) -> dict[str, Any]:
        head = _head(model, answer_id, now)
        ended: dict[str, Any] = {"status": "completed"}
        if cut:
            ended = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
        return {**head, **ended, "output": [_message(answer_id, "".join(pieces))], "usage": usage}

    def plan(answer_id: str, now: int) -> StreamPlan:
        return _plan(answer_id, _head(model, answer_id, now), whole(answer_id, now), pieces)

    return Answer(
        whole=lambda answer_id, now: msgspec.json.encode(whole(answer_id, now)),
        stream=plan if asked_flag(request, "stream") else None,
        quota_tokens=usage["total_tokens"],
        output_tokens=len(pieces),
    )


def _plan(answer_id: str, head: dict[str, Any], whole: dict[str, Any], pieces: tuple[str, ...]) -> StreamPlan:
    numbers = count()

    def told(kind: str, **fields: object) -> bytes:
        return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    at: dict[str, object] = {"item_id": f"msg_{answer_id}", "output_index": 0, "content_index": 0}
    item = _message(answer_id, "".join(pieces))
    begun: dict[str, Any] = {"status": "in_progress", "output": [], "usage": None}
    opening = (
        told("response.created", response={**head, **begun})
        + told("response.in_progress", response={**head, **begun})
        + told("response.output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []})
        + told("response.content_part.added", **at, part={"type": "output_text", "text": "", "annotations": []})
    )
    content = tuple(told("response.output_text.delta", **at, delta=piece, logprobs=[]) for piece in pieces)
    closing = (
        told("response.output_text.done", **at, text="".join(pieces), logprobs=[])
        + told("response.content_part.done", **at, part=item["content"][0])
        + told("response.output_item.done", output_index=0, item=item)
        + told(f"response.{whole['status']}", response=whole)
    )
    return StreamPlan(opening, content, closing)


def _head(model: Model, answer_id: str, now: int) -> dict[str, Any]:
    return {
        "id": f"resp_{answer_id}",
        "object": "response",
        "created_at": now,
        "model": model.provider_model_id,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def _message(answer_id: str, text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {
        "id": f"msg_{answer_id}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }
