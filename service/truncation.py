"""Fitting a conversation into a context window, where the caller or the configuration allows it (F-14).

Rule of this file: what is dropped is whole turns, oldest first. A turn begins with a user's message, so that a tool's
result never loses its call. Instructions (system and developer messages) and the newest turn always stay.
"""

from collections.abc import Sequence

import msgspec

from service.wire import RawFields, estimated_tokens

_INSTRUCTIONS = ("system", "developer")
_REPLY_LIMITS = ("max_completion_tokens", "max_tokens")
_REPLY_SHARE, _MOST_REPLY_TOKENS = 4, 4096


class _Message(msgspec.Struct):
    role: str = ""


_MESSAGE = msgspec.json.Decoder(_Message)


def least_tokens(messages: Sequence[msgspec.Raw]) -> int:
    """Return the estimated tokens of what always stays."""
    keeps = _keeps(messages, len(_turn_starts(messages)) - 1)
    return estimated_tokens(message for message, kept in zip(messages, keeps, strict=True) if kept)


def fitted(messages: Sequence[msgspec.Raw], window_tokens: int, fields: RawFields) -> list[msgspec.Raw]:
    """Return the messages without as many of the oldest turns as it takes to leave room for the reply.

    The reply's room is what `fields` asks for, else a quarter of the window, at most 4096 tokens. It is given up before
    the newest turn is.
    """
    budget = window_tokens - _reply_tokens(window_tokens, fields)
    kept = list(messages)
    for dropped in range(len(_turn_starts(messages))):
        keeps = _keeps(messages, dropped)
        kept = [message for message, keep in zip(messages, keeps, strict=True) if keep]
        if estimated_tokens(kept) <= budget:
            break
    return kept


def _keeps(messages: Sequence[msgspec.Raw], dropped_turns: int) -> list[bool]:
    """Tell for each message whether it stays when that many of the oldest turns go."""
    starts = _turn_starts(messages)
    first_kept = starts[dropped_turns] if 0 < dropped_turns < len(starts) else 0
    return [index >= first_kept or _role(message) in _INSTRUCTIONS for index, message in enumerate(messages)]


def _turn_starts(messages: Sequence[msgspec.Raw]) -> list[int]:
    starts = [index for index, message in enumerate(messages) if _role(message) == "user"]
    # What stands before the first user's message goes with the first turn.
    return [0, *starts[1:]] if starts else [0]


def _role(message: msgspec.Raw) -> str:
    try:
        return _MESSAGE.decode(message).role
    except (msgspec.DecodeError, RecursionError):
        return ""


def _reply_tokens(window_tokens: int, fields: RawFields) -> int:
    for name in _REPLY_LIMITS:
        try:
            asked = msgspec.json.decode(fields[name], type=int) if name in fields else 0
        except (msgspec.DecodeError, RecursionError):
            asked = 0
        if asked > 0:
            return asked
    return min(window_tokens // _REPLY_SHARE, _MOST_REPLY_TOKENS)
