"""Reading and building the OpenAI wire format, as little of it as routing needs; everything else stays raw JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from routing.model import Capability
from service.errors import InvalidRequestError, Violation
from service.providers.base import Operation

RawFields = Mapping[str, msgspec.Raw]

_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
CHARACTERS_PER_TOKEN = 4
_MAX_DEPTH = 128
_MAX_PARTS = 200_000  # arrays, objects, and texts with brackets in them
_NO_PART_OF_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'[]{}"\\/bfnrtu')  # what escapes end in, too
_AS_ARRAYS = bytes.maketrans(b"{}", b"[]")
_NEITHER_BRACKET_NOR_QUOTE = bytes(byte for byte in range(256) if byte not in b'[]{}"')


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    message: msgspec.Raw = msgspec.Raw(b"null")
    delta: _Delta | None = None


class _Choices(msgspec.Struct):
    choices: list[_Choice] = []


_CHOICES = msgspec.json.Decoder(_Choices)


def body_fields(body: bytes, field: str = "body") -> dict[str, msgspec.Raw]:
    """Return the top-level fields of a JSON object, each as it was written.

    Raises InvalidRequestError naming `field` when it is not a JSON object.
    """
    try:
        # A raw value is passed on as it came, so its text is checked here: a provider's complaint about broken UTF-8
        # would count against the provider.
        str(body, "utf-8")
        if _too_deep(body):
            expected = f"expected JSON nested at most {_MAX_DEPTH} deep, of at most {_MAX_PARTS} parts"
            raise InvalidRequestError(Violation(field, expected))
        return _BODY.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(Violation(field, f"expected a JSON object in UTF-8 ({error})")) from error


def _too_deep(body: bytes) -> bool:
    """Tell whether JSON is nested deeper than anybody needs, or has more parts: what is raw to us is parsed by
    providers, recursively.

    Strings are taken out, then brackets that enclose nothing, one layer at a time. Each step is linear, and the last
    one bounded, so that no body can hold up the event loop. Text that is no JSON is for the decoder to refuse.
    """
    count = body.count(b"[") + body.count(b"{")
    if count <= _MAX_DEPTH:
        return False
    unescaped = body.translate(None, _NO_PART_OF_STRUCTURE).replace(b"\\\\", b"").replace(b'\\"', b"")
    text = unescaped.translate(_AS_ARRAYS, _NEITHER_BRACKET_NOR_QUOTE).replace(b'""', b"")
    if text.count(b'"') > 2 * _MAX_PARTS:
        return True
    left = b"".join(text.split(b'"')[::2])  # what is between strings
    if len(left) > 2 * _MAX_PARTS:
        return True
    for _ in range(_MAX_DEPTH):
        inner = left.replace(b"[]", b"")
        if len(inner) == len(left):
            return False
        left = inner
    return bool(left)


def array_items(raw: msgspec.Raw | None, field: str) -> list[msgspec.Raw]:
    """Return the items of a non-empty JSON array, each as it was written. Raises InvalidRequestError naming the
    field.
    """
    try:
        items = _LIST.decode(raw) if raw is not None else []
    except (msgspec.DecodeError, RecursionError):
        items = []
    if not items:
        raise InvalidRequestError(Violation(field, "expected a non-empty array"))
    return items


def text_field(fields: RawFields, field: str) -> str:
    """Return a non-empty string field. Raises InvalidRequestError naming it."""
    try:
        value = msgspec.json.decode(fields[field], type=str) if field in fields else ""
    except (msgspec.DecodeError, RecursionError):
        value = ""
    if not value:
        raise InvalidRequestError(Violation(field, "expected a non-empty string"))
    return value


def flag_field(fields: RawFields, field: str) -> bool:
    """Return a boolean field, False when absent or null. Raises InvalidRequestError naming it."""
    try:
        return bool(msgspec.json.decode(fields[field], type=bool | None)) if field in fields else False
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(Violation(field, "expected true or false")) from error


class Asked(msgspec.Struct, frozen=True):
    """What a body asks for, as far as routing has to know. `messages` are those of a chat, each as it was written;
    tokens are estimated for chats alone. Of the output it is the most the body allows, 0 when it does not say.
    """

    messages: Sequence[msgspec.Raw]
    needs: frozenset[Capability]
    input_tokens: int
    max_output_tokens: int


def asked(operation: Operation, fields: RawFields, *, stream: bool) -> Asked:
    """Look into a body once, for all who have to know. Raises InvalidRequestError for a chat without messages."""
    messages = array_items(fields.get("messages"), "messages") if operation is Operation.CHAT else ()
    return Asked(
        messages, needs(operation, fields, stream=stream), estimated_tokens(messages), most_output_tokens(fields)
    )


def needs(operation: Operation, fields: RawFields, *, stream: bool) -> frozenset[Capability]:
    """Return what an endpoint must be able to do for this body."""
    if operation is Operation.EMBEDDINGS:
        return frozenset({Capability.EMBEDDINGS})
    chat = operation is Operation.CHAT
    wanted = {Capability.CHAT if chat else Capability.RESPONSES}
    if stream:
        wanted.add(Capability.STREAMING)
    if "tools" in fields or "functions" in fields:
        wanted.add(Capability.TOOLS)
    shown = bytes(fields.get("messages" if chat else "input", b""))
    if (b'"image_url"' if chat else b'"input_image"') in shown:
        wanted.add(Capability.VISION)
    return frozenset(wanted)


def estimated_tokens(parts: Iterable[msgspec.Raw]) -> int:
    """Estimate the input tokens from the size of the JSON: a rule of thumb of four characters a token, images left
    out.
    """
    texts = map(bytes, parts)
    return sum(len(text) for text in texts if b'"image_url"' not in text) // CHARACTERS_PER_TOKEN


def most_output_tokens(fields: Mapping[str, msgspec.Raw]) -> int:
    """Return how many output tokens the request allows, by whichever name it says so; 0 when it does not."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        if name not in fields:
            continue
        try:
            value = msgspec.json.decode(fields[name])
        except (msgspec.DecodeError, RecursionError):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def answer_message(body: bytes) -> msgspec.Raw | None:
    """Return the message of the first choice of a whole reply, as it was written; None when there is none."""
    try:
        choices = _CHOICES.decode(body).choices
    except (msgspec.DecodeError, RecursionError):
        return None
    return choices[0].message if choices and bytes(choices[0].message) != b"null" else None


class AnswerBuilder:
    """Puts the first choice of a stream together again, so that a session can keep it: text, refusal and tool calls."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._tool_calls: dict[int, dict[str, Any]] = {}

    def add(self, data: bytes) -> None:
        """Take one event of the stream. Events that are no chat deltas say nothing."""
        try:
            choices = _CHOICES.decode(data).choices
        except (msgspec.DecodeError, RecursionError):
            return
        for choice in choices:
            if choice.index == 0 and choice.delta is not None:
                self._merge(choice.delta)

    def _merge(self, delta: _Delta) -> None:
        for key, text in (("content", delta.content), ("refusal", delta.refusal)):
            if text is not None:
                self._texts.setdefault(key, []).append(text)
        for part in delta.tool_calls or ():
            call = self._tool_calls.setdefault(part.index, {"type": "function", "function": {}})
            call |= {key: value for key, value in (("id", part.id), ("type", part.type)) if value}
            function, told = call["function"], part.function or _Function()
            for key, text in (("name", told.name), ("arguments", told.arguments)):
                if text is not None:
                    function[key] = function.get(key, "") + text

    def message(self) -> msgspec.Raw:
        """Return the assistant's message as JSON."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts.get("content", [])) or None}
        if "refusal" in self._texts:
            message["refusal"] = "".join(self._texts["refusal"])
        if self._tool_calls:
            message["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
        return msgspec.Raw(msgspec.json.encode(message))


def encode_array(items: Sequence[msgspec.Raw]) -> msgspec.Raw:
    """Return a JSON array of items that are JSON already."""
    return msgspec.Raw(msgspec.json.encode(list(items)))
