"""Fitting conversations into windows (F-14): whole turns go, oldest first; instructions and the newest turn stay."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.truncation import fitted, least_tokens
from service.wire import estimated_tokens

ROLES = ("system", "developer", "user", "assistant", "tool")


def _messages(*given: tuple[str, str]) -> list[msgspec.Raw]:
    return [msgspec.Raw(msgspec.json.encode({"role": role, "content": text})) for role, text in given]


def _texts(messages: list[msgspec.Raw]) -> list[str]:
    return [msgspec.json.decode(message)["content"] for message in messages]


CALL = [
    ("system", "s" * 40),
    ("user", "old" * 40),
    ("assistant", "call" * 40),
    ("tool", "result" * 40),
    ("developer", "d" * 40),
    ("user", "newer"),
    ("assistant", "yes"),
    ("user", "newest"),
]


def test_f14_a_call_never_loses_its_result() -> None:
    messages = _messages(*CALL)
    window = estimated_tokens(messages) - 20
    assert _texts(fitted(messages, window, _reply_of(1))) == ["s" * 40, "d" * 40, "newer", "yes", "newest"]


def test_f14_what_fits_is_left_alone() -> None:
    messages = _messages(*CALL)
    assert fitted(messages, estimated_tokens(messages) + 1, _reply_of(1)) == messages


def _reply_of(tokens: Any) -> dict[str, msgspec.Raw]:
    return {"max_tokens": msgspec.Raw(msgspec.json.encode(tokens))}


@pytest.mark.parametrize(
    ("fields", "room"),
    [({}, 250), (_reply_of(100), 100), (_reply_of(None), 250), (_reply_of("many"), 250), (_reply_of(-3), 250)],
)
def test_f14_the_reply_has_its_room(fields: dict[str, msgspec.Raw], room: int) -> None:
    messages = _messages(("user", "x" * 2760), ("user", "x" * 360), ("user", "x" * 240))
    kept = fitted(messages, 1000, fields)
    assert estimated_tokens(kept) <= 1000 - room
    assert len(kept) == (3 if room == 100 else 2), "no more goes than has to"


@given(
    st.lists(st.tuples(st.sampled_from(ROLES), st.text(max_size=200)), min_size=1, max_size=12),
    st.integers(min_value=1, max_value=400),
)
def test_f14_any_conversation_keeps_its_instructions_and_newest_turn(
    given_messages: list[tuple[str, str]], window: int
) -> None:
    messages = _messages(*given_messages)
    kept = fitted(messages, window, _reply_of(1))
    instructions = [m for m, (role, _) in zip(messages, given_messages, strict=True) if role in ("system", "developer")]
    assert [m for m in kept if m in instructions] == [m for m in messages if m in instructions]
    assert kept[-1] == messages[-1]
    assert [m for m in messages if any(m is k for k in kept)] == kept, "in order, and nothing made up"
    users = [m for m, (role, _) in zip(messages, given_messages, strict=True) if role == "user"]
    if users:
        assert any(users[-1] is k for k in kept)
    assert estimated_tokens(kept) < window or estimated_tokens(kept) == least_tokens(messages)


@pytest.mark.parametrize("odd", [b"1", b"null", b'{"role": 7}', b'{"role": "user"', b"[]"])
def test_f14_a_message_that_is_none_stays_somebody_else_s_trouble(odd: bytes) -> None:
    messages = [msgspec.Raw(odd), *_messages(("user", "hi"))]
    assert least_tokens(messages) >= 0
    assert fitted(messages, 1, {})[-1] == messages[-1]
