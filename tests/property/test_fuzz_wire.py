"""Fuzzing of what strangers send, without sockets: whatever the JSON, the events or the headers, the answer is a value
or one of the errors that the code names, and nothing grows.
"""

import gc
import json
import math
import re
import tracemalloc
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import InvalidRequestError
from service.providers import anthropic_reply, responses_wire
from service.providers.anthropic_reply import completion, error_body, kept_headers
from service.providers.anthropic_request import Untranslatable, translate
from service.providers.base import AttemptFailed, Call, Chunk, Operation
from service.providers.classify import detail_of, error_text, of_error_object, of_status
from service.providers.openai_wire import StreamReader, check_reply, request_body
from service.providers.quality import wants_json
from service.providers.reader import EventReader, Malformed, Reported, Unusable
from service.providers.retry_after import asked_wait_s, retry_after_s
from service.providers.sse import SseEvent, SseParser
from service.providers.transport import Timeouts, UpstreamRequest, UpstreamResponse
from service.providers.upstream import Upstream
from service.wire import AnswerBuilder, answer_message, body_fields, estimated_tokens

# The words that mean something in one of the formats, so that generated JSON gets past the first look at it.
WORDS = (
    "choices", "delta", "message", "messages", "content", "role", "user", "assistant", "system", "tool", "tool_calls",
    "function", "name", "arguments", "index", "id", "type", "text", "finish_reason", "stop", "usage", "prompt_tokens",
    "completion_tokens", "input_tokens", "output_tokens", "error", "code", "data", "output", "response", "status",
    "message_start", "content_block_start", "content_block_delta", "content_block_stop", "content_block",
    "message_delta", "message_stop", "text_delta", "input_json_delta", "partial_json", "tool_use", "thinking",
    "end_turn", "stop_reason", "response.completed", "response.failed", "response.output_text.delta", "tools",
    "tool_choice", "image_url", "url", "response_format", "json_schema", "schema", "json_object", "stream_options",
    "include_usage", "model", "{}", '{"a":1}',
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(WORDS),
    st.integers(0, 3),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), inner, max_size=5),
    ),
    max_leaves=25,
)
JSON = st.one_of(VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60))
# Formats nest alike, so objects of these shapes reach far into the code.
CHOICE = st.fixed_dictionaries(
    {}, optional={"index": VALUES, "delta": VALUES, "message": VALUES, "finish_reason": VALUES}
)
SHAPED = st.one_of(
    st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=3)}, optional={"usage": VALUES, "error": VALUES}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(WORDS)},
        optional={"index": VALUES, "delta": VALUES, "content_block": VALUES, "message": VALUES, "response": VALUES},
    ),
    st.fixed_dictionaries({"content": VALUES, "usage": VALUES}, optional={"stop_reason": VALUES, "id": VALUES}),
).map(lambda value: json.dumps(value).encode())
EVENTS = st.lists(st.one_of(SHAPED, JSON, st.just(b"[DONE]")), max_size=8)
READERS: list[Callable[[], EventReader]] = [
    lambda: StreamReader(usage_requested=True),
    lambda: anthropic_reply.StreamReader(created=0, usage_requested=False),
    responses_wire.StreamReader,
]
ASKED = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(WORDS), "content": VALUES}), max_size=4)},
    optional=dict.fromkeys(("tools", "tool_choice", "response_format", "max_tokens", "stop", "n", "user"), VALUES),
)


@given(st.sampled_from(READERS), EVENTS)
def test_a_stream_of_anything_is_read_or_named_as_wrong(make: Callable[[], EventReader], events: list[bytes]) -> None:
    reader, builder = make(), AnswerBuilder()
    try:
        for event in events:
            for chunk in reader.read(SseEvent(event)):
                assert isinstance(chunk, Chunk)
                msgspec.json.decode(chunk.data)
                builder.add(chunk.data)
        if reader.complete:
            reader.end()
    except (Malformed, Reported, Unusable):
        pass
    msgspec.json.decode(builder.message())


def _refusal(act: Callable[[], object], *errors: type[Exception]) -> Exception | None:
    """What of `errors` the act raises, None when nothing; anything else fails the test."""
    try:
        act()
    except errors as error:
        return error
    return None


@given(st.one_of(SHAPED, JSON), st.booleans())
def test_an_answer_of_anything_is_read_or_named_as_wrong(body: bytes, json_wanted: bool) -> None:
    for read in (
        lambda: check_reply(body, Operation.CHAT, json=json_wanted),
        lambda: check_reply(body, Operation.EMBEDDINGS),
        lambda: responses_wire.check_reply(body),
        lambda: check_reply(completion(body, 0), Operation.CHAT, json=json_wanted),
    ):
        refused = _refusal(read, Malformed, Reported, Unusable)
        assert refused is None or str(refused)
    answer_message(body)


@given(st.one_of(ASKED.map(lambda value: json.dumps(value).encode()), JSON))
def test_a_request_of_anything_is_translated_or_refused_by_name(body: bytes) -> None:
    refused = _refusal(lambda: body_fields(body), InvalidRequestError)
    if refused is not None:
        assert str(refused).startswith("body: ")
        return
    fields = body_fields(body)
    call = Call(Operation.CHAT, fields, stream=True)
    wants_json(call)
    estimated_tokens(fields.values())
    sent = msgspec.json.decode(request_body(call, "m", ask_usage=True), type=dict[str, msgspec.Raw])
    for name in set(fields) - {"model", "stream", "stream_options"}:
        assert bytes(sent[name]) == bytes(fields[name])
    untranslatable = _refusal(lambda: translate(call, "m", 1), Untranslatable)
    if untranslatable is None:
        assert {"model", "max_tokens", "messages"} <= set(json.loads(translate(call, "m", 1).body))
    else:
        assert re.match(r"[\w.\[\]]+: \S", str(untranslatable))


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


@given(VALUES, st.integers(min_value=0, max_value=300), st.booleans())
@example('"[[{\\"' * 40, 120, True)
def test_depth_is_counted_as_a_parser_counts_it(value: object, wraps: int, as_object: bool) -> None:
    for _ in range(wraps):
        value = {"a": value} if as_object else [value]
    # Enough beside each other that the body is looked at closely.
    body = json.dumps({"x": value, "wide": [[]] * 130}).encode()
    refused = _refusal(lambda: body_fields(body), InvalidRequestError)
    assert (refused is not None) == (1 + max(_depth(value), 2) > 128)
    assert refused is None or "nested at most" in str(refused)


@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from(("retry-after", "retry-after-ms", "x-ratelimit-reset", "x-ratelimit-reset-requests")),
            st.sampled_from(("x-ratelimit-remaining-requests", "anthropic-ratelimit-tokens-reset")),
            st.text(max_size=12),
        ),
        st.one_of(
            st.text(max_size=40),
            st.from_regex(r"\d{1,400}(\.\d+)?(ms|[smhd])?", fullmatch=True),
            st.datetimes().map(str),
            st.floats().map(str),
        ),
        max_size=5,
    ),
    st.floats(0, 4e9),
)
def test_a_wait_of_anything_is_none_or_a_number_of_seconds(headers: dict[str, str], now: float) -> None:
    for told in (headers, kept_headers(headers)):
        for wait in (retry_after_s(told, now), asked_wait_s(told, now)):
            assert wait is None or (math.isfinite(wait) and wait >= 0)


@given(st.one_of(SHAPED, JSON), st.integers(100, 999))
def test_an_error_of_anything_has_one_outcome_and_one_line(body: bytes, status: int) -> None:
    detail = detail_of(body)
    for outcome in (of_status(status, detail), of_error_object(detail)):
        line = error_text(detail, outcome, status)
        assert line
        assert "\n" not in line
        assert len(line) < 400
    error_body(body)


class _Nowhere:
    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        raise AssertionError(request)

    async def prewarm(self, url: str, connections: int, connect_s: float) -> None: ...

    async def aclose(self) -> None: ...


UPSTREAM = Upstream("http://h/v1", _Nowhere(), credentials={"Authorization": "Bearer k"})


@given(
    st.dictionaries(st.one_of(st.text(max_size=12), st.sampled_from(("Host", "authorization"))), st.text(max_size=20)),
    st.text(max_size=30),
)
def test_no_header_or_query_breaks_out_of_its_place(headers: dict[str, str], query: str) -> None:
    call = Call(Operation.CHAT, {}, headers=headers, request_id="r")
    try:
        sent = UPSTREAM.post(call, "/x", b"{}", Timeouts(1, 1, 1), query=query)
    except AttemptFailed:
        return
    assert not re.search(r"[\x00-\x20\x7f-\U0010ffff#]", sent.url)
    for name, value in sent.headers:
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        assert not re.search(r"[^\t\x20-\x7e]", value)
    assert [value for name, value in sent.headers if name.lower() == "authorization"] == ["Bearer k"]
    assert "host" not in {name.lower() for name, _ in sent.headers}


@given(st.lists(st.binary(max_size=40), max_size=60), st.integers(min_value=1, max_value=64))
def test_the_event_parser_holds_no_more_than_it_may(pieces: list[bytes], limit: int) -> None:
    parser = SseParser(limit)
    for piece in pieces:
        try:
            parser.feed(piece)
        except ValueError:
            return
        held = sum(map(len, parser._partial)) + sum(map(len, parser._data))
        assert held <= limit


def test_nothing_grows() -> None:
    """Ten thousand broken and whole streams leave nothing behind."""
    event = b'{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":%s}]}'

    def round_of_streams() -> None:
        for number in range(1_000):
            reader = READERS[number % 3]()
            try:
                for data in (event % b"null", event % b'"stop"', b"{", b"7"):
                    reader.read(SseEvent(data))
            except (Malformed, Reported, Unusable):
                pass
            SseParser().feed(b"data: {" * (number % 7))

    tracemalloc.start()
    try:
        round_of_streams()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(9):
            round_of_streams()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 50_000


@pytest.mark.parametrize(
    "body", [b'{"a":' * 10**6, b'{"a":"' + b'"' * 10**6, b'{"a":' + b'[""],' * 10**6, b"[" * 10**6]
)
def test_a_large_body_of_nonsense_is_refused_in_linear_time(body: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        body_fields(body)
