"""An OpenAI chat request as a Messages request: the same question in other words, or a refusal that names the field."""

import json
from typing import Any

import msgspec
import pytest

from service.providers.anthropic_request import Translation, Untranslatable, translate
from service.providers.base import Call, Operation

HELLO = [{"role": "user", "content": "hello"}]
TEXT = {"type": "text", "text": "hello"}
PNG = "data:image/png;base64,iVBORw0KGgo="


def _raw(body: bytes, *, stream: bool = False) -> Translation:
    call = Call(Operation.CHAT, msgspec.json.decode(body, type=dict[str, msgspec.Raw]), stream)
    return translate(call, "claude", 4096)


def _sent(stream: bool = False, **fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "house/chat", "messages": HELLO} | fields).encode()
    sent: dict[str, Any] = json.loads(_raw(body, stream=stream).body)
    return sent


def test_a_plain_question() -> None:
    assert _sent() == {"model": "claude", "max_tokens": 4096, "messages": [{"role": "user", "content": [TEXT]}]}
    assert _sent(stream=True)["stream"] is True


def test_what_the_system_says_stands_apart_in_its_order() -> None:
    messages = [
        {"role": "system", "content": "one"},
        {"role": "user", "content": "hello"},
        {"role": "developer", "content": [{"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "hi"},
        {"role": "system", "content": ""},
    ]
    sent = _sent(messages=messages)
    assert sent["system"] == [
        {"type": "text", "text": "one"},
        {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}},
    ]
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant"]


def test_neighbours_of_one_role_become_one_turn() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    sent = _sent(messages=messages)["messages"]
    assert [(turn["role"], [block["text"] for block in turn["content"]]) for turn in sent] == [
        ("user", ["a", "b"]),
        ("assistant", ["c"]),
    ]


def test_tools_are_called_and_their_results_come_back_in_one_turn() -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 1.0}'}},
        {"id": "c2", "type": "function", "function": {"name": "wait", "arguments": ""}},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "done"}]},
        {"role": "user", "content": "and?"},
    ]
    _, answered, results = _sent(messages=messages)["messages"]
    assert answered["content"] == [
        {"type": "tool_use", "id": "c1", "name": "look", "input": {"n": 1.0}},
        {"type": "tool_use", "id": "c2", "name": "wait", "input": {}},
    ]
    assert results == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": "seen"},
            {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "done"}]},
            {"type": "text", "text": "and?"},
        ],
    }


def test_thinking_comes_back_as_it_was_given() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s=="}
    message = {"role": "assistant", "content": "hi", "thinking_blocks": [thought], "reasoning_content": "hm"}
    assert _sent(messages=[*HELLO, message])["messages"][1]["content"] == [thought, {"type": "text", "text": "hi"}]


def test_schemas_and_arguments_are_carried_byte_for_byte() -> None:
    """F-17: what a JSON library would damage."""
    schema = b'{"type":"object","x-order":[3,1],"const":12345678901234567890, "n":1.0,"e":1E-7}'
    tool = b'{"type":"function","function":{"name":"f","description":"d","parameters":' + schema + b',"strict":true}}'
    body = b'{"messages":[{"role":"user","content":"x"}],"temperature":0.30000000000000004,"tools":[' + tool + b"]}"
    sent = msgspec.json.decode(_raw(body).body, type=dict[str, msgspec.Raw])
    (made,) = msgspec.json.decode(sent["tools"], type=list[dict[str, msgspec.Raw]])
    assert bytes(made["input_schema"]) == schema
    assert {name: bytes(made[name]) for name in ("name", "description", "strict")} == {
        "name": b'"f"',
        "description": b'"d"',
        "strict": b"true",
    }
    assert bytes(sent["temperature"]) == b"0.30000000000000004"


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_the_choice_of_a_tool(fields: dict[str, Any], choice: dict[str, Any] | None) -> None:
    sent = _sent(tools=[TOOL], **fields)
    assert sent.get("tool_choice") == choice
    assert sent["tools"] == [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]


def test_a_tool_of_the_providers_own_passes() -> None:
    own = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    assert _sent(tools=[own])["tools"] == [own]


@pytest.mark.parametrize(
    ("part", "block"),
    [
        (
            {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        ),
        (
            {"type": "image_url", "image_url": "https://example.com/a.png"},
            {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        ),
        (
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        ),
        ({"type": "refusal", "refusal": "no"}, {"type": "text", "text": "no"}),
    ],
)
def test_parts_of_a_message(part: dict[str, Any], block: dict[str, Any]) -> None:
    sent = _sent(messages=[{"role": "user", "content": [{"type": "text", "text": "see"}, part]}])
    assert sent["messages"][0]["content"] == [{"type": "text", "text": "see"}, block]


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 8, "max_tokens": 7}, {"max_tokens": 8}),
        ({"max_tokens": None}, {"max_tokens": 4096}),
        ({"stop": "END"}, {"stop_sequences": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}),
        ({"user": "u7"}, {"metadata": {"user_id": "u7"}}),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, {"temperature": 0.7, "top_p": 0.9, "top_k": 5}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"n": 1, "logprobs": False, "modalities": ["text"], "stream_options": {"include_usage": True}}, {}),
    ],
)
def test_limits_and_formats(fields: dict[str, Any], sent: dict[str, Any]) -> None:
    got = _sent(**fields)
    assert {name: got[name] for name in sent} == sent
    assert set(got) - set(sent) <= {"model", "messages", "max_tokens"}


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({}, ()),
        ({"seed": 7, "x_new": [1], "presence_penalty": 0.5}, ("seed", "x_new", "presence_penalty")),
        ({"seed": None}, ()),
        ({"temperature": 1.7}, ("temperature",)),
        ({"response_format": {"type": "json_object"}}, ("response_format",)),
    ],
)
def test_what_has_no_counterpart_is_left_out_by_name(fields: dict[str, Any], left_out: tuple[str, ...]) -> None:
    made = _raw(json.dumps({"messages": HELLO} | fields).encode())
    assert made.left_out == left_out
    assert set(json.loads(made.body)) <= {"model", "messages", "max_tokens", "temperature"}
    assert json.loads(made.body).get("temperature", 0) <= 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "system", "content": "alone"}]}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "ftp://x"}}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [*HELLO, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
            "messages[1].tool_calls[0].function",
        ),
        (
            {
                "messages": [
                    *HELLO,
                    {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{"}}]},
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": "some"}, "tool_choice"),
        ({"tools": 7}, "tools"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stop": 7}, "stop"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(Untranslatable) as raised:
        _sent(**fields)
    assert raised.value.field == field
    assert str(raised.value).startswith(f"{field}: ")
