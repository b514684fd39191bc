"""A Messages answer as a chat completion, whole and in events; and addresses and settings of the other kinds."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from routing.outcomes import Outcome
from service.config import Config
from service.config_upstream import Provider
from service.providers.anthropic_reply import StreamReader, completion, error_body, kept_headers
from service.providers.azure import AzureAddresses
from service.providers.base import Chunk, Operation
from service.providers.reader import Malformed, Reported, Unusable
from service.providers.retry_after import retry_after_s
from service.providers.sse import SseEvent
from service.wire import AnswerBuilder

USAGE = {"input_tokens": 10, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 30, "output_tokens": 5}
MESSAGE: dict[str, Any] = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "usage": USAGE}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s=="}
CALL = {"type": "tool_use", "id": "t1", "name": "look", "input": {"n": 1.0}}


def _whole(*content: dict[str, Any], stop_reason: str | None = "end_turn") -> dict[str, Any]:
    body = json.dumps(MESSAGE | {"content": content, "stop_reason": stop_reason}).encode()
    answer: dict[str, Any] = json.loads(completion(body, 1_000))
    return answer


def _read(*events: dict[str, Any], usage_requested: bool = False) -> tuple[StreamReader, list[Chunk]]:
    reader = StreamReader(created=1_000, usage_requested=usage_requested)
    chunks = [chunk for event in events for chunk in reader.read(SseEvent(json.dumps(event).encode()))]
    return reader, chunks


def _start(**usage: int) -> dict[str, Any]:
    return {"type": "message_start", "message": MESSAGE | {"content": [], "usage": USAGE | usage}}


def _block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _end(stop_reason: str = "end_turn", **usage: int) -> list[dict[str, Any]]:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]


def test_a_whole_answer_with_everything() -> None:
    answer = _whole(THOUGHT, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}, CALL, stop_reason="tool_use")
    assert answer == {
        "id": "msg_1",
        "object": "chat.completion",
        "created": 1_000,
        "model": "claude",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "ab",
                    "refusal": None,
                    "tool_calls": [
                        {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"n": 1.0}'}}
                    ],
                    "reasoning_content": "hm",
                    "thinking_blocks": [THOUGHT],
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {
            "prompt_tokens": 60,
            "completion_tokens": 5,
            "total_tokens": 65,
            "prompt_tokens_details": {"cached_tokens": 30},
        },
    }


@pytest.mark.parametrize(
    ("stop_reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("a_new_reason", "stop"),
        (None, "stop"),
    ],
)
def test_why_it_ended(stop_reason: str | None, finish_reason: str) -> None:
    assert (
        _whole({"type": "text", "text": "a"}, stop_reason=stop_reason)["choices"][0]["finish_reason"] == finish_reason
    )


def test_a_stream_is_the_same_answer_in_pieces() -> None:
    reader, chunks = _read(
        _start(output_tokens=1),
        {"type": "ping"},
        *_block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "hm"},
            {"type": "signature_delta", "signature": "s=="},
        ),
        *_block(1, {"type": "text", "text": ""}, *({"type": "text_delta", "text": t} for t in "ab")),
        *_block(
            2,
            CALL | {"input": {}},
            *({"type": "input_json_delta", "partial_json": part} for part in ("", '{"n":', " 1.0}")),
        ),
        {"type": "an_event_of_the_future", "index": 3},
        *_end("tool_use", output_tokens=5),
    )
    assert (reader.done, reader.complete) == (True, True)
    builder = AnswerBuilder()
    for chunk in chunks:
        builder.add(chunk.data)
    said = json.loads(bytes(builder.message()))
    whole = _whole(THOUGHT, {"type": "text", "text": "ab"}, CALL, stop_reason="tool_use")
    assert {name: whole["choices"][0]["message"][name] for name in ("content", "tool_calls")} == {
        name: said[name] for name in ("content", "tool_calls")
    }
    deltas = [json.loads(chunk.data)["choices"][0]["delta"] for chunk in chunks]
    assert [delta["reasoning_content"] for delta in deltas if "reasoning_content" in delta] == ["hm"]
    assert [delta["thinking_blocks"] for delta in deltas if "thinking_blocks" in delta] == [[THOUGHT]]
    assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == ["tool_calls"]
    (last,) = reader.end()
    assert json.loads(last.data)["usage"] == whole["usage"]
    assert (last.input_tokens, last.output_tokens, last.usage_requested) == (60, 5, False)


def test_two_tools_at_once_have_places_of_their_own() -> None:
    _, chunks = _read(_start(), *_block(0, CALL), *_block(1, CALL | {"id": "t2"}), *_end("tool_use"))
    places = [json.loads(chunk.data)["choices"][0]["delta"].get("tool_calls") for chunk in chunks]
    assert [(place[0]["index"], place[0]["id"]) for place in places if place] == [(0, "t1"), (1, "t2")]


def test_a_stream_is_whole_once_it_says_why_it_ended() -> None:
    events = [_start(), *_block(0, {"type": "text", "text": ""}, {"type": "text_delta", "text": "a"})]
    assert not _read(*events)[0].complete
    reader, _ = _read(*events, _end()[0])
    assert (reader.complete, reader.done) == (True, False)


def test_a_stream_that_says_nothing_is_empty_unless_something_explains_it() -> None:
    with pytest.raises(Unusable) as raised:
        _read(_start(), *_block(0, {"type": "text", "text": ""}), *_end())
    assert raised.value.outcome is Outcome.EMPTY
    assert _read(_start(), *_end("refusal"))[0].done


@pytest.mark.parametrize(
    "event", [{"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}, {"no": "type"}, 7, []]
)
def test_events_that_make_no_sense_are_malformed(event: Any) -> None:
    with pytest.raises(Malformed):
        _read(event)


def test_an_error_is_reported() -> None:
    with pytest.raises(Reported):
        _read({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})


@pytest.mark.parametrize("body", [b"", b"[]", b'{"content":"text"}', b'{"content":[7]}', b'{"content":[{"type":'])
def test_an_answer_that_is_no_message_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="expected a message"):
        completion(body, 0)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error":"x"}', b'{"error":{"message":"x"}}'])
def test_an_error_of_another_shape_stays_as_it_is(body: bytes) -> None:
    assert error_body(body) == body


def test_limits_have_openais_names() -> None:
    headers = {
        "request-id": "req_1",
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2026-11-05T12:00:30Z",
        "anthropic-ratelimit-output-tokens-remaining": "7",
        "anthropic-ratelimit-unheard-of": "x",
        "Retry-After": "3",
        "date": "today",
    }
    kept = kept_headers(headers)
    assert kept == {
        "x-request-id": "req_1",
        "x-ratelimit-limit-requests": "50",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2026-11-05T12:00:30Z",
        "x-ratelimit-remaining-output-tokens": "7",
        "retry-after": "3",
    }
    del kept["retry-after"]
    assert retry_after_s(kept, 1_793_880_000.0) == pytest.approx(30.0), "the wait is read from them"


@pytest.mark.parametrize(
    ("operation", "query", "path", "sent"),
    [
        (Operation.CHAT, "", "/openai/deployments/my%2Fgpt/chat/completions", "api-version=v1"),
        (Operation.EMBEDDINGS, "a=%7E1&b", "/openai/deployments/my%2Fgpt/embeddings", "a=%7E1&b&api-version=v1"),
        (Operation.CHAT, "api-version=theirs", "/openai/deployments/my%2Fgpt/chat/completions", "api-version=v1"),
        (Operation.RESPONSES, "", "/openai/responses", "api-version=v1"),
    ],
)
def test_an_azure_deployment_has_its_own_path(operation: Operation, query: str, path: str, sent: str) -> None:
    assert AzureAddresses("v1").locate(operation, "my/gpt", query) == (path, sent)


def _config(kind: str, *capabilities: str) -> dict[str, Any]:
    endpoint = {"provider": "p", "provider_model": "m"}
    return {
        "providers": [{"name": "p", "kind": kind, "base_url": "https://h"}],
        "models": [{"id": "m", "capabilities": capabilities, "endpoints": [endpoint]}],
    }


def test_a_kind_is_not_configured_to_do_what_it_cannot() -> None:
    Config.model_validate(_config("anthropic", "chat", "streaming"))
    Config.model_validate(_config("azure", "chat", "embeddings", "responses"))
    for capability in ("embeddings", "responses"):
        with pytest.raises(ValidationError, match=f"of kind anthropic, which has no {capability}"):
            Config.model_validate(_config("anthropic", "chat", capability))
    with pytest.raises(ValidationError, match="expected no api_version"):
        Provider.model_validate({"name": "p", "base_url": "https://h", "api_version": "1"})
