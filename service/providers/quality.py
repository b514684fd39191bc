"""Whether an answer that came through can be used: not empty, and JSON where JSON was asked for.

The rule of this file: it is pure and lenient. An answer that explains itself (cut by a limit, filtered, refused) is an
answer; text with JSON somewhere in it has not refused the format.
"""

from collections.abc import Mapping, Sequence

import msgspec

from routing.outcomes import Outcome
from service.providers.base import Call
from service.providers.reader import Unusable

_EMPTY = frozenset({b"", b"null", b'""', b"[]", b"{}"})
_LONGEST_EMPTY = max(map(len, _EMPTY))
_SPOKEN = ("content", "refusal", "tool_calls", "function_call", "audio", "images", "reasoning_content", "reasoning")
_JSON_FORMATS = frozenset({"json_object", "json_schema"})
# Reasons to finish that promise something; others say why there is nothing.
_PROMISING = frozenset({None, "stop", "tool_calls", "function_call"})
_OPENINGS, _CLOSINGS = "{[", "}]"

Fields = Mapping[str, msgspec.Raw]


class _Format(msgspec.Struct):
    type: str = ""


class Answered(msgspec.Struct):
    """One choice of a whole answer."""

    message: dict[str, msgspec.Raw] | None = None
    finish_reason: str | None = None


def wants_json(call: Call) -> bool:
    """Does the request ask for JSON as its answer?"""
    asked = call.fields.get("response_format")
    if asked is None:
        return False
    try:
        return msgspec.json.decode(asked, type=_Format).type in _JSON_FORMATS
    except (ValueError, RecursionError):
        return False


def says_something(message: Fields) -> bool:
    """Is there anything in a message (or delta) beside its role?"""
    return any(name != "role" and not _is_empty(raw) for name, raw in message.items())


def check_choices(choices: Sequence[Answered], *, json: bool) -> None:
    """Raise Unusable for choices of which none says anything, or that are not JSON though `json` was asked for."""
    if not any(_speaks(choice.message or {}) for choice in choices):
        check_end({choice.finish_reason for choice in choices})
    elif json and all(_no_json(choice) for choice in choices):
        raise Unusable(Outcome.REFUSED_FORMAT, "expected JSON as the request demands, got other text")


def check_end(finish_reasons: set[str | None]) -> None:
    """Raise Unusable for an answer without content that ended for these reasons, unless one of them explains it."""
    if finish_reasons <= _PROMISING:
        raise Unusable(Outcome.EMPTY, "the answer has neither content nor a tool call")


def _speaks(message: Fields) -> bool:
    return any(name in message and not _is_empty(message[name]) for name in _SPOKEN)


def _is_empty(raw: msgspec.Raw) -> bool:
    # By its size first: an answer may be large, and this is asked of every event of a stream.
    return memoryview(raw).nbytes <= _LONGEST_EMPTY and bytes(raw) in _EMPTY


def _no_json(choice: Answered) -> bool:
    message = choice.message or {}
    if choice.finish_reason != "stop" or any(
        bytes(message.get(n, b"")) not in _EMPTY for n in ("refusal", "tool_calls")
    ):
        return False
    try:
        text = msgspec.json.decode(message.get("content", b"null"), type=str)
    except (ValueError, RecursionError):
        return False  # parts: not plain text, so not ours to judge
    starts = [at for at in map(text.find, _OPENINGS) if at >= 0]
    ends = [at for at in map(text.rfind, _CLOSINGS) if at >= 0]
    return not any(_is_json(part) for part in (text, text[min(starts, default=0) : max(ends, default=-1) + 1]))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return False
    return True
