"""From an OpenAI chat request to a request of Anthropic's Messages API.

The rule of this file: it is pure, and it never changes what is asked. What both protocols know is carried over, schemas
and unknown Messages fields byte for byte; what Messages cannot express is left out and named when the answer has the
same shape without it, and refused when it has not.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from service.providers.base import Call

Fields = Mapping[str, msgspec.Raw]
Block = dict[str, Any]
# Messages' own fields, which callers of OpenAI clients send as extra ones.
_SHARED = (
    "cache_control", "container", "context_management", "mcp_servers", "output_config", "thinking", "top_k", "top_p",
)  # fmt: skip
_TRANSLATED = frozenset((
    "max_completion_tokens", "max_tokens", "messages", "model", "parallel_tool_calls", "response_format", "stop",
    "stream", "stream_options", "temperature", "tool_choice", "tools", "user",
))  # fmt: skip
# They ask for an answer of another shape unless they have one of these values.
_HARMLESS: Mapping[str, frozenset[bytes]] = {
    "n": frozenset({b"1", b"null"}),
    "logprobs": frozenset({b"false", b"null"}),
    "modalities": frozenset({b'["text"]', b"null"}),
    "functions": frozenset({b"null"}),  # tools replaced it in 2023
    "web_search_options": frozenset({b"null"}),
}
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w=.+-]+)*;base64,(.*)", re.DOTALL)
_CHOICES: Mapping[str, Block] = {"auto": {"type": "auto"}, "none": {"type": "none"}, "required": {"type": "any"}}


class Untranslatable(ValueError):  # noqa: N818 - says what the request is
    """A request that Messages cannot express. `field` is its path; the text says what was expected there."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: {expected}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Translation:
    """The body to send, and the names of the caller's fields that are not in it."""

    body: bytes
    left_out: tuple[str, ...]


def translate(call: Call, provider_model: str, max_tokens: int) -> Translation:
    """Return the Messages request for a chat call.

    Args:
        call: a chat call; its body's fields as raw JSON.
        provider_model: the model's name there.
        max_tokens: sent when the caller sets no limit, for Messages demands one.

    Raises:
        Untranslatable: Messages cannot express it, or it is no chat request.
    """
    fields = call.fields
    system, messages = _conversation(_decoded(fields, "messages", list[dict[str, msgspec.Raw]]))
    limit = _decoded(fields, "max_completion_tokens", int | None) or _decoded(fields, "max_tokens", int | None)
    request: Block = {"model": provider_model, "max_tokens": limit or max_tokens, "messages": messages}
    if system:
        request["system"] = system
    if call.stream:
        request["stream"] = True
    _use_tools(fields, request)
    left_out = _limits(fields, request) + _format(fields, request) + _left_out(fields)
    request |= {name: fields[name] for name in _SHARED if name in fields and bytes(fields[name]) != b"null"}
    return Translation(msgspec.json.encode(request), tuple(left_out))


def _limits(fields: Fields, request: Block) -> list[str]:
    stop = _decoded(fields, "stop", str | list[str] | None)
    if stop:
        request["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    if user := _decoded(fields, "user", str | None):
        request["metadata"] = {"user_id": user}
    temperature = _decoded(fields, "temperature", float | None)
    if temperature is None:
        return []
    request["temperature"] = min(temperature, 1.0) if temperature > 1 else fields["temperature"]
    return ["temperature"] if temperature > 1 else []


def _use_tools(fields: Fields, request: Block) -> None:
    tools = _decoded(fields, "tools", list[dict[str, msgspec.Raw]] | None)
    if not tools:
        return
    request["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    choice = _tool_choice(_decoded(fields, "tool_choice", str | dict[str, Any] | None))
    if _decoded(fields, "parallel_tool_calls", bool | None) is False and (choice or {}).get("type") != "none":
        choice = (choice or _CHOICES["auto"]) | {"disable_parallel_tool_use": True}
    if choice:
        request["tool_choice"] = choice


def _tool_choice(asked: str | Block | None) -> Block | None:
    if asked is None:
        return None
    if isinstance(asked, str) and asked in _CHOICES:
        return _CHOICES[asked]
    function = asked.get("function") if isinstance(asked, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Untranslatable("tool_choice", f"expected one of {', '.join(_CHOICES)}, or a function with its name")
    return {"type": "tool", "name": function["name"]}


def _tool(tool: Mapping[str, msgspec.Raw], path: str) -> Block | Mapping[str, msgspec.Raw]:
    if bytes(tool.get("type", b"")) != b'"function"':
        return tool  # one of Anthropic's own, as its callers write it
    function = _decoded(tool, "function", dict[str, msgspec.Raw], path)
    if "name" not in function:
        raise Untranslatable(f"{path}.function.name", "expected a name")
    empty = msgspec.Raw(b'{"type":"object","properties":{}}')
    made: Block = {"name": function["name"], "input_schema": function.get("parameters", empty)}
    made |= {
        name: function[name] for name in ("description", "strict") if bytes(function.get(name, b"null")) != b"null"
    }
    return made | {name: tool[name] for name in ("cache_control",) if name in tool}


def _format(fields: Fields, request: Block) -> list[str]:
    """A schema has a counterpart; `json_object` has none, and is asked for in the prompt anyway by its own rules."""
    asked = _decoded(fields, "response_format", dict[str, msgspec.Raw] | None) or {}
    if bytes(asked.get("type", b"")) == b'"json_object"':
        return ["response_format"]
    if bytes(asked.get("type", b"")) != b'"json_schema"' or "output_config" in fields:
        return []
    named = _decoded(asked, "json_schema", dict[str, msgspec.Raw], "response_format")
    if "schema" not in named:
        raise Untranslatable("response_format.json_schema.schema", "expected a schema")
    request["output_config"] = {"format": {"type": "json_schema", "schema": named["schema"]}}
    return []


def _left_out(fields: Fields) -> list[str]:
    for name, harmless in _HARMLESS.items():
        if name in fields and bytes(fields[name]) not in harmless:
            raise Untranslatable(name, "has no counterpart in this provider's protocol")
    known = _TRANSLATED.union(_SHARED, _HARMLESS)
    return [name for name in fields if name not in known and bytes(fields[name]) != b"null"]


def _conversation(messages: list[dict[str, msgspec.Raw]]) -> tuple[list[Block], list[Block]]:
    """Return the system's blocks and the turns. Neighbours of one role become one turn, as tool results must."""
    system: list[Block] = []
    turns: list[Block] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        role = _decoded(message, "role", str, path)
        if role not in _ROLES:
            raise Untranslatable(f"{path}.role", f"expected one of {', '.join(_ROLES)}")
        to, blocks_of = _ROLES[role]
        blocks = blocks_of(message, path)
        if to == "system":
            system += blocks
        elif turns and turns[-1]["role"] == to:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": to, "content": blocks})
    if not turns:
        raise Untranslatable("messages", "expected at least one message besides the system's")
    return system, turns


def _spoken(message: Fields, path: str) -> list[Block]:
    content = _decoded(message, "content", str | list[dict[str, Any]] | None, path)
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [_part(part, f"{path}.content[{index}]") for index, part in enumerate(content or ())]


def _answered(message: Fields, path: str) -> list[Block]:
    """An assistant's turn: its thinking (which has to come back unchanged), its text, its tool calls."""
    thinking = _decoded(message, "thinking_blocks", list[dict[str, Any]] | None, path) or []
    calls = _decoded(message, "tool_calls", list[dict[str, Any]] | None, path) or []
    made = [_tool_use(call, f"{path}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return [*thinking, *_spoken(message, path), *made]


def _tool_use(call: Block, path: str) -> Block:
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Untranslatable(f"{path}.function", "expected a function with its name")
    arguments = function.get("arguments") or "{}"
    try:
        msgspec.json.decode(arguments, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, TypeError, RecursionError):
        raise Untranslatable(f"{path}.function.arguments", "expected a JSON object as text") from None
    raw = msgspec.Raw(arguments.encode())
    return {"type": "tool_use", "id": call.get("id", ""), "name": function["name"], "input": raw}


def _tool_result(message: Fields, path: str) -> list[Block]:
    answered = _decoded(message, "tool_call_id", str, path)
    content = _decoded(message, "content", str | list[dict[str, Any]] | None, path)
    parts = _spoken(message, path) if isinstance(content, list) else content or ""
    return [{"type": "tool_result", "tool_use_id": answered, "content": parts}]


def _part(part: Block, path: str) -> Block:
    kind = part.get("type")
    kept = {"cache_control": part["cache_control"]} if "cache_control" in part else {}
    match kind:
        case "text" | "refusal" if isinstance(part.get(kind), str):
            return {"type": "text", "text": part[kind], **kept}
        case "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            return {"type": "image", "source": _source(url, f"{path}.image_url.url"), **kept}
        case "file":
            file = part.get("file")
            data = file.get("file_data") if isinstance(file, dict) else None
            return {"type": "document", "source": _source(data, f"{path}.file.file_data"), **kept}
    raise Untranslatable(f"{path}.type", f"expected text, image_url or file, got {str(kind)[:40]!r}")


def _source(url: object, path: str) -> Block:
    if isinstance(url, str):
        if inline := _DATA_URL.fullmatch(url):
            return {"type": "base64", "media_type": inline[1], "data": inline[2]}
        if url.startswith(("https://", "http://")):
            return {"type": "url", "url": url}
    raise Untranslatable(path, "expected a base64 data URL or an http(s) URL")


_ROLES: Mapping[str, tuple[str, Callable[[Fields, str], list[Block]]]] = {
    "system": ("system", _spoken),
    "developer": ("system", _spoken),
    "user": ("user", _spoken),
    "assistant": ("assistant", _answered),
    "tool": ("user", _tool_result),
}


def _decoded(fields: Fields, name: str, kind: Any, path: str = "") -> Any:
    """Return a field's value as `kind`; an absent one is null."""
    try:
        return msgspec.json.decode(fields.get(name, b"null"), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        where = f"{path}.{name}" if path else name
        raise Untranslatable(where, f"not as the chat completions format has it ({error})") from None
