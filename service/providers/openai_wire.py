"""The OpenAI wire format as bytes: requests assembled from raw fields, answers looked into without being rebuilt.

The rule of this file: it is pure, and it decodes only the few fields that routing and accounting need. All else stays
the bytes it was; what is malformed is told as `Malformed`, never as an exception of the JSON library.
"""

from collections.abc import Mapping

import msgspec

from service.providers.base import Call, Chunk, Operation

PATHS: Mapping[Operation, str] = {Operation.CHAT: "/chat/completions", Operation.EMBEDDINGS: "/embeddings"}
_ANSWER_FIELD: Mapping[Operation, str] = {Operation.CHAT: "choices", Operation.EMBEDDINGS: "data"}
_NOTHING = frozenset({b"", b"null"})
_EMPTY = frozenset({b"", b"null", b'""', b"[]", b"{}"})
_ABSENT = msgspec.Raw()


class Malformed(ValueError):  # noqa: N818 - named as its outcome
    """An answer that is not what the wire format promises. The text says what was expected."""


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _ReplyPeek(msgspec.Struct):
    choices: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct):
    index: int = 0
    delta: dict[str, msgspec.Raw] | None = None
    finish_reason: str | None = None


class _ChunkPeek(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT


class _ModelId(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


_encode = msgspec.json.Encoder().encode
_reply = msgspec.json.Decoder(_ReplyPeek)
_chunk = msgspec.json.Decoder(_ChunkPeek)
_usage = msgspec.json.Decoder(_Usage)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_models = msgspec.json.Decoder(_ModelList)
_model_id = msgspec.json.Decoder(_ModelId)
Tokens = tuple[int | None, int | None]


def request_body(call: Call, provider_model: str, *, ask_usage: bool) -> bytes:
    """Return the JSON to send: the caller's fields in their order, each value byte for byte except

    `model`, which becomes `provider_model`; `stream`, made to agree with `call.stream`; and, for streams with
    `ask_usage`, `stream_options`, whose `include_usage` becomes true.
    """
    fields: dict[str, bytes | msgspec.Raw] = dict(call.fields)
    fields["model"] = _encode(provider_model)
    if call.stream:
        fields["stream"] = b"true"
        if ask_usage and not usage_requested(call):
            fields["stream_options"] = _with_usage(call.fields.get("stream_options", _ABSENT))
    elif bytes(fields.get("stream", b"")) == b"true":
        fields["stream"] = b"false"
    return b"{" + b",".join([_encode(name) + b":" + bytes(value) for name, value in fields.items()]) + b"}"


def usage_requested(call: Call) -> bool:
    """Did the caller itself ask for usage in its stream?"""
    try:
        options = _fields.decode(call.fields.get("stream_options", b"{}"))
    except (ValueError, RecursionError):
        return False
    return bytes(options.get("include_usage", _ABSENT)) == b"true"


def _with_usage(raw: msgspec.Raw) -> bytes:
    """Set include_usage in the caller's options; options that are no object go upstream as they are, to be refused."""
    if bytes(raw) in _NOTHING:
        return b'{"include_usage":true}'
    try:
        options: dict[str, bytes | msgspec.Raw] = dict(_fields.decode(raw))
    except (ValueError, RecursionError):
        return bytes(raw)
    options["include_usage"] = b"true"
    return b"{" + b",".join([_encode(name) + b":" + bytes(value) for name, value in options.items()]) + b"}"


def check_reply(body: bytes, operation: Operation) -> tuple[Tokens, bool]:
    """Return the tokens (in, out) of a 200 answer, and whether it is an error object instead.

    Raises:
        Malformed: it is not a JSON object, or lacks what `operation` answers with.
    """
    try:
        peek = _reply.decode(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a JSON object as the answer: {error}") from None
    if bytes(peek.error) not in _NOTHING:
        return (None, None), True
    name = _ANSWER_FIELD[operation]
    if not bytes(peek.choices if name == "choices" else peek.data).startswith(b"["):
        raise Malformed(f"expected an answer with a list of {name}")
    return _tokens(peek.usage), False


class StreamReader:
    """Looks into the events of one stream and knows when it is complete.

    Args:
        usage_requested: whether the caller asked for the usage chunk itself.
    """

    __slots__ = ("_finished", "_seen", "_usage_requested", "done")

    def __init__(self, *, usage_requested: bool) -> None:
        self._usage_requested = usage_requested
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self.done = False

    @property
    def complete(self) -> bool:
        """[DONE] was seen, or every choice has told why it finished."""
        return self.done or (bool(self._seen) and self._seen == self._finished)

    def read(self, data: bytes) -> Chunk | None:
        """Look into one event other than [DONE]; returns None when it is an error object.

        Raises:
            Malformed: it is not a JSON object, or its choices are not choices.
        """
        try:
            peek = _chunk.decode(data)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"expected JSON objects as events: {error}") from None
        if bytes(peek.error) not in _NOTHING:
            return None
        has_content = False
        finish_reason = None
        for choice in peek.choices or ():
            self._seen.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
                finish_reason = choice.finish_reason
            if choice.delta and not has_content:
                has_content = any(bytes(raw) not in _EMPTY for name, raw in choice.delta.items() if name != "role")
        input_tokens, output_tokens = _tokens(peek.usage)
        usage_alone = not peek.choices and input_tokens is not None
        return Chunk(
            data,
            has_content,
            finish_reason,
            input_tokens,
            output_tokens,
            usage_requested=self._usage_requested or not usage_alone,
        )


def read_models(body: bytes) -> list[tuple[str, bytes]]:
    """Return id and raw entry of each listed model; raises Malformed."""
    try:
        return [(_model_id.decode(entry).id, bytes(entry)) for entry in _models.decode(body).data]
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a list of models: {error}") from None


def _tokens(raw: msgspec.Raw) -> Tokens:
    """Usage of an unknown shape counts as none: it must not cost the caller an answer."""
    if bytes(raw) in _NOTHING:
        return None, None
    try:
        usage = _usage.decode(raw)
    except (ValueError, RecursionError):
        return None, None
    return usage.prompt_tokens, usage.completion_tokens
