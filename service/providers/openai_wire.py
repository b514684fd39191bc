"""The OpenAI wire format as bytes: requests assembled from raw fields, answers looked into without being rebuilt.

The rule of this file: it is pure, and it decodes only the few fields that routing and accounting need. All else stays
the bytes it was; what is malformed is told as `Malformed`, never as an exception of the JSON library.
"""

from collections.abc import Mapping, Sequence

import msgspec

from service.providers.base import Call, Chunk, Operation
from service.providers.quality import Answered, check_choices, check_end, says_something
from service.providers.reader import NOTHING, Malformed, Reported, Tokens, tokens
from service.providers.sse import SseEvent

PATHS: Mapping[Operation, str] = {
    Operation.CHAT: "/chat/completions",
    Operation.EMBEDDINGS: "/embeddings",
    Operation.RESPONSES: "/responses",
}
_ABSENT = msgspec.Raw()
_UNJUDGED = Answered(finish_reason="unreadable")


class _Usage(msgspec.Struct):
    input_tokens: int | None = msgspec.field(default=None, name="prompt_tokens")
    output_tokens: int | None = msgspec.field(default=None, name="completion_tokens")


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
_choices = msgspec.json.Decoder(list[Answered])
_usage = msgspec.json.Decoder(_Usage)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_models = msgspec.json.Decoder(_ModelList)
_model_id = msgspec.json.Decoder(_ModelId)


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
    if bytes(raw) in NOTHING:
        return b'{"include_usage":true}'
    try:
        options: dict[str, bytes | msgspec.Raw] = dict(_fields.decode(raw))
    except (ValueError, RecursionError):
        return bytes(raw)
    options["include_usage"] = b"true"
    return b"{" + b",".join([_encode(name) + b":" + bytes(value) for name, value in options.items()]) + b"}"


def check_reply(body: bytes, operation: Operation, *, json: bool = False) -> Tokens:
    """Return the tokens (in, out) of a 200 answer to a chat or embeddings request.

    Args:
        body: the answer.
        operation: what was asked.
        json: whether the request asked for JSON.

    Raises:
        Reported: it is an error object instead.
        Malformed: it is not a JSON object, or lacks what `operation` answers with.
        Unusable: it is empty, or not JSON though it should be.
    """
    try:
        peek = _reply.decode(body)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a JSON object as the answer: {error}") from None
    if bytes(peek.error) not in NOTHING:
        raise Reported(body)
    if operation is Operation.EMBEDDINGS:
        if not bytes(peek.data).startswith(b"["):
            raise Malformed("expected an answer with a list of data")
        if bytes(peek.data) == b"[]":
            check_end({None})
        return tokens(peek.usage, _usage)
    if not bytes(peek.choices).startswith(b"["):
        raise Malformed("expected an answer with a list of choices")
    check_choices(_readable(peek.choices), json=json)
    return tokens(peek.usage, _usage)


def _readable(raw: msgspec.Raw) -> list[Answered]:
    """Choices of an unknown shape count as an answer: they must not cost the caller one."""
    try:
        return _choices.decode(raw)
    except (ValueError, RecursionError):
        return [_UNJUDGED]


class StreamReader:
    """Looks into the events of one stream of chat chunks and knows when it is complete. An `EventReader`.

    Args:
        usage_requested: whether the caller asked for the usage chunk itself.
    """

    __slots__ = ("_finished", "_reasons", "_seen", "_spoken", "_usage_requested", "done")

    def __init__(self, *, usage_requested: bool) -> None:
        self._usage_requested = usage_requested
        self._seen: set[int] = set()
        self._finished: set[int] = set()
        self._reasons: set[str | None] = set()
        self._spoken = False
        self.done = False

    @property
    def complete(self) -> bool:
        """[DONE] was seen, or every choice has told why it finished."""
        return self.done or (bool(self._seen) and self._seen == self._finished)

    def read(self, event: SseEvent) -> Sequence[Chunk]:
        """Look into one event.

        Raises:
            Reported: it is an error object.
            Malformed: it is not a JSON object, or its choices are not choices.
            Unusable: it ends an answer in which nothing was said.
        """
        data = event.data
        if data == b"[DONE]":
            self.done = True
            return ()
        try:
            peek = _chunk.decode(data)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"expected JSON objects as events: {error}") from None
        if bytes(peek.error) not in NOTHING:
            raise Reported(data)
        has_content = False
        finish_reason = None
        for choice in peek.choices or ():
            self._seen.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
                self._reasons.add(choice.finish_reason)
                finish_reason = choice.finish_reason
            if choice.delta and not has_content:
                has_content = says_something(choice.delta)
        self._spoken = self._spoken or has_content
        if finish_reason is not None and not self._spoken and self._seen == self._finished:
            check_end(self._reasons)  # now, while nothing has been handed on that matters
        input_tokens, output_tokens = tokens(peek.usage, _usage)
        usage_alone = not peek.choices and input_tokens is not None
        chunk = Chunk(
            data,
            has_content,
            finish_reason,
            input_tokens,
            output_tokens,
            usage_requested=self._usage_requested or not usage_alone,
        )
        return (chunk,)

    def end(self) -> Sequence[Chunk]:
        """Nothing is owed: every event was handed on when it came."""
        if not self._spoken:
            check_end(self._reasons)
        return ()


def read_models(body: bytes) -> list[tuple[str, bytes]]:
    """Return id and raw entry of each listed model; raises Malformed."""
    try:
        return [(_model_id.decode(entry).id, bytes(entry)) for entry in _models.decode(body).data]
    except (ValueError, RecursionError) as error:
        raise Malformed(f"expected a list of models: {error}") from None
