"""From an answer of Anthropic's Messages API, whole or streamed, to OpenAI's chat completion.

The rule of this file: it is pure. Text, tool arguments and thinking are carried over as they are; `thinking_blocks`
holds what a next request has to bring back unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from service.providers.base import Chunk
from service.providers.quality import check_end
from service.providers.reader import Malformed, Reported, Tokens, plausible
from service.providers.sse import SseEvent

_FINISH: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_THINKING = ("thinking", "redacted_thinking")
_RATE_LIMITS = "anthropic-ratelimit-"
_LIMITS = ("limit", "remaining", "reset")
_KEPT = ("x-request-id", "retry-after", "x-should-retry")
_EMPTY = msgspec.Raw(b"{}")


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    id: str = ""
    name: str = ""
    input: msgspec.Raw = _EMPTY


class _Message(msgspec.Struct):
    content: list[msgspec.Raw]
    id: str = ""
    model: str = ""
    stop_reason: str | None = None
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    partial_json: str = ""
    thinking: str = ""
    signature: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: _Message | None = None
    content_block: msgspec.Raw = _EMPTY
    delta: _Delta = msgspec.field(default_factory=_Delta)
    usage: _Usage | None = None


class _ModelId(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_block = msgspec.json.Decoder(_Block).decode
_encode = msgspec.json.Encoder().encode


def completion(body: bytes, created: int) -> bytes:
    """Return the chat completion that a Messages answer makes; `created` is in seconds since the epoch.

    Raises:
        Malformed: it is not a message.
    """
    try:
        message = _decode_message(body)
        blocks = [(_decode_block(raw), raw) for raw in message.content]
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a message: {error}") from None
    said: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(block.text for block, _ in blocks if block.type == "text") or None,
        "refusal": None,
    }
    calls = [_tool_call(block, bytes(block.input).decode()) for block, _ in blocks if block.type == "tool_use"]
    if calls:
        said["tool_calls"] = calls
    thinking = [raw for block, raw in blocks if block.type in _THINKING]
    if thinking:
        said["reasoning_content"] = "".join(block.thinking for block, _ in blocks)
        said["thinking_blocks"] = thinking
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": _finish(message.stop_reason)}
    head = _head(message, "chat.completion", created)
    return _encode({**head, "choices": [choice], "usage": _usage(message.usage)})


class StreamReader:
    """Makes chat completion chunks of Messages events. An `EventReader`.

    Args:
        created: seconds since the epoch, for the chunks.
        usage_requested: whether the caller asked for the usage chunk itself.
    """

    def __init__(self, *, created: int, usage_requested: bool) -> None:
        self._created = created
        self._usage_requested = usage_requested
        self._head: dict[str, Any] = {}
        self._usage = _Usage()
        self._calls: dict[int, int] = {}
        self._thinking: dict[int, dict[str, Any]] = {}
        self._spoken = False
        self.done = False
        self.complete = False

    def read(self, event: SseEvent) -> Sequence[Chunk]:
        """Return the chunks one event makes; raises Reported, Malformed and Unusable."""
        try:
            told = _decode_event(event.data)
            if told.type == "error":
                raise Reported(event.data)
            return self._take(told)
        except Malformed:
            raise
        except (ValueError, RecursionError) as error:
            raise Malformed(f"expected typed events: {error}") from None

    def end(self) -> Sequence[Chunk]:
        """Return the usage, as OpenAI ends a stream with it."""
        input_tokens, output_tokens = _tokens(self._usage)
        if input_tokens is None:
            return ()
        data = _encode({**self._head, "choices": [], "usage": _usage(self._usage)})
        return (Chunk(data, False, None, input_tokens, output_tokens, usage_requested=self._usage_requested),)

    def _take(self, told: _Event) -> Sequence[Chunk]:
        if not self._head and told.message is None and told.type != "ping":
            raise Malformed("expected message_start before other events")
        match told.type:
            case "message_start" if told.message is not None:
                self._head = _head(told.message, "chat.completion.chunk", self._created)
                self._usage = told.message.usage
                return self._chunk({"role": "assistant", "content": ""}, has_content=False)
            case "content_block_start":
                return self._begin(told.index, _decode_block(told.content_block), told.content_block)
            case "content_block_delta":
                return self._add(told.index, told.delta)
            case "content_block_stop" if told.index in self._thinking:
                return self._chunk({"thinking_blocks": [self._thinking.pop(told.index)]})
            case "message_delta" if told.delta.stop_reason is not None:
                if not self._spoken:
                    check_end({_finish(told.delta.stop_reason)})  # now, while nothing has been handed on that matters
                self.complete = True
                self._count(told.usage)
                return self._chunk({}, has_content=False, finish_reason=_finish(told.delta.stop_reason))
            case "message_stop":
                self.done = True
        return ()  # pings, and events that came to the protocol later

    def _begin(self, index: int, block: _Block, raw: msgspec.Raw) -> Sequence[Chunk]:
        match block.type:
            case "tool_use":
                place = self._calls[index] = len(self._calls)
                return self._chunk({"tool_calls": [{"index": place, **_tool_call(block, "")}]})
            case "thinking" | "redacted_thinking":
                self._thinking[index] = msgspec.json.decode(raw)
            case "text" if block.text:
                return self._chunk({"content": block.text})
        return ()

    def _add(self, index: int, delta: _Delta) -> Sequence[Chunk]:
        match delta.type:
            case "text_delta" if delta.text:
                return self._chunk({"content": delta.text})
            case "input_json_delta" if index in self._calls:
                part = {"index": self._calls[index], "function": {"arguments": delta.partial_json}}
                return self._chunk({"tool_calls": [part]})
            case "thinking_delta" if index in self._thinking:
                self._thinking[index]["thinking"] = self._thinking[index].get("thinking", "") + delta.thinking
                return self._chunk({"reasoning_content": delta.thinking})
            case "signature_delta" if index in self._thinking:
                self._thinking[index]["signature"] = delta.signature
        return ()

    def _count(self, usage: _Usage | None) -> None:
        """Counts are cumulative: what an event does not name stands."""
        for name in usage.__struct_fields__ if usage else ():
            if (value := getattr(usage, name)) is not None:
                setattr(self._usage, name, value)

    def _chunk(
        self, delta: dict[str, Any], *, has_content: bool = True, finish_reason: str | None = None
    ) -> Sequence[Chunk]:
        self._spoken = self._spoken or has_content
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return (Chunk(_encode({**self._head, "choices": [choice]}), has_content, finish_reason),)


def error_body(body: bytes) -> bytes:
    """Return an error as an OpenAI client reads it; what is no error object of Messages stays as it is."""
    try:
        told = msgspec.json.decode(body)["error"]
        said = {"message": told["message"], "type": told["type"], "param": None, "code": None}
    except (ValueError, RecursionError, LookupError, TypeError):
        return body
    return _encode({"error": said})


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers about an answer and its limits under OpenAI's names: `anthropic-ratelimit-requests-remaining`
    is `x-ratelimit-remaining-requests` there.
    """
    kept: dict[str, str] = {}
    for given, value in headers.items():
        name = given.lower()
        if name == "request-id":
            kept["x-request-id"] = value
        elif name.startswith(_KEPT):
            kept[name] = value
        elif name.startswith(_RATE_LIMITS):
            unit, _, what = name.removeprefix(_RATE_LIMITS).rpartition("-")
            if what in _LIMITS:
                kept[f"x-ratelimit-{what}-{unit}"] = value
    return kept


def read_models(body: bytes) -> list[tuple[str, bytes]]:
    """Return id and raw entry of each listed model; raises Malformed."""
    try:
        listed = msgspec.json.decode(body, type=_Models).data
        return [(msgspec.json.decode(entry, type=_ModelId).id, bytes(entry)) for entry in listed]
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a list of models: {error}") from None


def _head(message: _Message, kind: str, created: int) -> dict[str, Any]:
    return {"id": message.id, "object": kind, "created": created, "model": message.model}


def _tool_call(block: _Block, arguments: str) -> dict[str, Any]:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _finish(stop_reason: str | None) -> str:
    return _FINISH.get(stop_reason or "", "stop")


def _tokens(usage: _Usage) -> Tokens:
    """Cached input is input too: OpenAI counts it in, Messages beside."""
    if usage.input_tokens is None:
        return None, None
    cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    return plausible(usage.input_tokens + cached), plausible(usage.output_tokens or 0)


def _usage(usage: _Usage) -> dict[str, Any] | None:
    input_tokens, output_tokens = _tokens(usage)
    if input_tokens is None or output_tokens is None:
        return None
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens or 0},
    }
