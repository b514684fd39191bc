"""What a broken text is continued with, and what is never continued."""

from typing import Any

import msgspec
import pytest

from service.continuation import can_be_continued, continued_fields, continued_messages, plain_text

ASKED = msgspec.Raw(b'{"role": "user", "content": "count"}')


def _fields(**values: Any) -> dict[str, msgspec.Raw]:
    return {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in values.items()}


@pytest.mark.parametrize(
    ("body", "possible"),
    [
        ({}, True),
        ({"n": 1, "tools": [], "logprobs": False, "response_format": None, "temperature": 0.5}, True),
        ({"n": None}, True),
        ({"n": 2}, False),
        ({"tools": [{"type": "function"}]}, False),
        ({"functions": [{"name": "f"}]}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"logprobs": True}, False),
        ({"top_logprobs": 3}, False),
        ({"modalities": ["text", "audio"]}, False),
    ],
)
def test_only_one_plain_text_can_be_continued(body: dict[str, Any], possible: bool) -> None:
    assert can_be_continued(_fields(messages=[], **body)) is possible


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "assistant", "content": "one tw"}, "one tw"),
        ({"role": "assistant", "content": None}, ""),
        ({"role": "assistant", "content": "one", "tool_calls": []}, ""),
        ({"role": "assistant", "content": "one", "refusal": "no"}, ""),
    ],
)
def test_an_answer_that_is_more_than_text_has_none_to_continue(message: dict[str, Any], text: str) -> None:
    assert plain_text(msgspec.Raw(msgspec.json.encode(message))) == text


def test_the_next_endpoint_gets_the_conversation_the_text_and_the_request() -> None:
    messages = [msgspec.json.decode(each) for each in continued_messages([ASKED], 'say "two')]
    assert messages[0] == {"role": "user", "content": "count"}
    assert messages[1] == {"role": "assistant", "content": 'say "two'}
    assert messages[2]["role"] == "user"
    assert "Continue it exactly where it stopped" in messages[2]["content"]


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({"max_tokens": 100}, {"max_tokens": 90}),
        ({"max_completion_tokens": 100}, {"max_completion_tokens": 90}),
        ({"max_tokens": 5}, {"max_tokens": 1}),
        ({}, {}),
    ],
)
def test_a_limit_on_the_output_counts_what_has_come(limits: dict[str, int], left: dict[str, int]) -> None:
    fields = _fields(model="m", temperature=0.1, **limits)
    body = continued_fields(fields, [ASKED], "x" * 40)
    assert {name: msgspec.json.decode(body[name]) for name in limits} == left
    assert (bytes(body["temperature"]), bytes(body["messages"])) == (b"0.1", b"[" + bytes(ASKED) + b"]")
