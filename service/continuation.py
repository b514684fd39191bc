"""Going on elsewhere with a stream that broke in the middle, for callers who asked for it: plain text only.

The rule of this file: what is sent on must be all there was. Tool calls, several choices, formats and log
probabilities cannot be resumed from a text, so such requests are never continued; and the next provider is told in so
many words what happened, because a trailing assistant message alone is not resumed by all of them.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from service.providers.base import Chunk
from service.trail import Usage
from service.wire import CHARACTERS_PER_TOKEN, encode_array, most_output_tokens

_PLAIN_ONLY_WITHOUT = ("tools", "functions", "response_format", "logprobs", "top_logprobs", "modalities", "audio")
_ABSENT = (b"null", b"false", b"[]")
_LIMITS = ("max_completion_tokens", "max_tokens")
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REQUEST = (
    "Your last message broke off, through no fault of yours. Continue it exactly where it stopped, within the word if "
    "need be. Repeat nothing, announce nothing, and do not mention the interruption."
)


def can_be_continued(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Tell whether the answer to this chat request is one plain text."""
    if any(bytes(fields[name]) not in _ABSENT for name in _PLAIN_ONLY_WITHOUT if name in fields):
        return False
    return bytes(fields.get("n", b"1")) in (b"1", b"null")


def plain_text(message: msgspec.Raw) -> str:
    """Return the text of an answer as far as it has come; "" when it holds anything else, or nothing yet."""
    said = msgspec.json.decode(message)
    return (said["content"] or "") if said.keys() <= {"role", "content"} else ""


def continued_messages(conversation: Sequence[msgspec.Raw], text: str) -> list[msgspec.Raw]:
    """Return the conversation that asks for the rest of an answer of which `text` has come."""
    said = {"role": "assistant", "content": text}
    asked = {"role": "user", "content": _REQUEST}
    return [*conversation, *(msgspec.Raw(msgspec.json.encode(message)) for message in (said, asked))]


def continued_fields(
    fields: Mapping[str, msgspec.Raw], messages: Sequence[msgspec.Raw], text: str
) -> Mapping[str, msgspec.Raw]:
    """Return the body that asks for the rest: its limit on the output, if it has one, is lowered by an estimate of what
    has come.
    """
    allowed = most_output_tokens(fields)
    left = msgspec.Raw(msgspec.json.encode(max(1, allowed - len(text) // CHARACTERS_PER_TOKEN)))
    limits = {name: left for name in _LIMITS if name in fields} if allowed else {}
    return {**fields, **limits, "messages": encode_array(messages)}


def with_earlier(chunk: Chunk, used: Usage) -> Chunk:
    """Return a chunk with usage, to which is added what earlier attempts have `used`: its caller pays for them too."""
    said = _FIELDS.decode(chunk.data)
    usage = _FIELDS.decode(said["usage"])
    input_tokens = (chunk.input_tokens or 0) + (used.input_tokens or 0)
    output_tokens = (chunk.output_tokens or 0) + (used.output_tokens or 0)
    sums = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    usage |= {name: msgspec.Raw(msgspec.json.encode(tokens)) for name, tokens in sums.items()}
    said["usage"] = msgspec.Raw(msgspec.json.encode(usage))
    return replace(chunk, data=msgspec.json.encode(said), input_tokens=input_tokens, output_tokens=output_tokens)
