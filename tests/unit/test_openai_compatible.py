"""What the OpenAI adapter decides without a socket: bodies, classes of failure, waits, completeness."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from routing.outcomes import Outcome
from service.providers.base import Call, Operation
from service.providers.classify import detail_of, error_text, of_error_object, of_status
from service.providers.openai_compatible import OpenAICompatible
from service.providers.openai_wire import StreamReader, check_reply, read_models, request_body, usage_requested
from service.providers.quality import wants_json
from service.providers.reader import Malformed, Reported, Unusable
from service.providers.retry_after import asked_wait_s, retry_after_s
from service.providers.sse import SseEvent
from service.providers.transport import UpstreamRequest, UpstreamResponse

NOW = datetime(2026, 11, 5, 12, 0, 0, tzinfo=UTC).timestamp()


def _call(body: bytes, *, stream: bool = False) -> Call:
    return Call(Operation.CHAT, msgspec.json.decode(body, type=dict[str, msgspec.Raw]), stream)


@pytest.mark.parametrize(
    "value",
    [
        b"12345678901234567890",
        b"1e400",
        b"1.0",
        b"-0",
        b'"\\u00e9\\/\\n"',
        b'{"b": 1 ,\n"a":[ ]}',
        b'"\xc3\xa9"',
        b"null",
    ],
)
def test_every_value_but_the_model_goes_upstream_byte_for_byte(value: bytes) -> None:
    """F-17."""
    call = _call(b'{"x_new":' + value + b',"model":"openai/gpt-4","messages":[ 1 ]}')
    expected = b'{"x_new":' + value + b',"model":"gpt-4","messages":[ 1 ]}'
    assert request_body(call, "gpt-4", ask_usage=True) == expected


def test_the_providers_model_name_is_escaped_and_added_where_missing() -> None:
    assert request_body(_call(b'{"n":1}'), 'a"b', ask_usage=True) == b'{"n":1,"model":"a\\"b"}'


@pytest.mark.parametrize(
    ("given", "sent", "requested"),
    [
        (b"{}", b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', False),
        (b'{"stream":true}', b'{"stream":true,"model":"m","stream_options":{"include_usage":true}}', False),
        (
            b'{"stream_options":{"x":1.0,"include_usage":false}}',
            b'{"stream_options":{"x":1.0,"include_usage":true},"model":"m","stream":true}',
            False,
        ),
        (
            b'{"stream_options":{"include_usage": true, "x": 2}}',
            b'{"stream_options":{"include_usage": true, "x": 2},"model":"m","stream":true}',
            True,
        ),
        (b'{"stream_options":null}', b'{"stream_options":{"include_usage":true},"model":"m","stream":true}', False),
        (b'{"stream_options":[1]}', b'{"stream_options":[1],"model":"m","stream":true}', False),
    ],
)
def test_a_stream_asks_for_usage_and_remembers_who_wanted_it(given: bytes, sent: bytes, requested: bool) -> None:
    call = _call(given, stream=True)
    assert request_body(call, "m", ask_usage=True) == sent
    assert usage_requested(call) is requested


def test_a_server_that_refuses_stream_options_is_not_sent_any() -> None:
    assert request_body(_call(b"{}", stream=True), "m", ask_usage=False) == b'{"model":"m","stream":true}'


def test_a_whole_answer_is_not_asked_for_as_a_stream() -> None:
    assert request_body(_call(b'{"stream":true}'), "m", ask_usage=True) == b'{"stream":false,"model":"m"}'


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (400, b'{"error":{"message":"bad","code":"context_length_exceeded"}}', Outcome.CLIENT_ERROR),
        (400, b'{"error":{"message":"Model Not Exist","type":"invalid_request_error"}}', Outcome.AUTH_ERROR),
        (401, b"", Outcome.AUTH_ERROR),
        (402, b'{"error":{"message":"Insufficient Balance"}}', Outcome.AUTH_ERROR),
        (403, b"<html>", Outcome.AUTH_ERROR),
        (404, b'{"error":{"code":"model_not_found","message":"x"}}', Outcome.AUTH_ERROR),
        (404, b'{"object":"error","message":"The model `x` does not exist.","code":404}', Outcome.AUTH_ERROR),
        (404, b"not here", Outcome.AUTH_ERROR),
        (408, b"", Outcome.TIMEOUT),
        (413, b"", Outcome.CLIENT_ERROR),
        (422, b'{"detail":[{"loc":["body"]}]}', Outcome.CLIENT_ERROR),
        (429, b'{"error":{"code":"insufficient_quota"}}', Outcome.RATE_LIMITED),
        (500, b"", Outcome.SERVER_ERROR),
        (503, b"[", Outcome.SERVER_ERROR),
        (504, b"", Outcome.TIMEOUT),
        (529, b"", Outcome.SERVER_ERROR),
        (302, b"", Outcome.AUTH_ERROR),
        (600, b"", Outcome.MALFORMED),
    ],
)
def test_a_status_has_its_outcome(status: int, body: bytes, outcome: Outcome) -> None:
    assert of_status(status, detail_of(body)) is outcome


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"error":{"code":429,"message":"slow down"}}', Outcome.RATE_LIMITED),
        (b'{"error":{"code":"502","message":"bad gateway"}}', Outcome.SERVER_ERROR),
        (b'{"error":{"code":null,"type":"rate_limit_error"}}', Outcome.RATE_LIMITED),
        (b'{"error":{"code":"Context_Length_Exceeded"}}', Outcome.CLIENT_ERROR),
        (b'{"error":{"code":408}}', Outcome.TIMEOUT),
        (b'{"error":{"type":"new_kind_of_trouble"}}', Outcome.SERVER_ERROR),
        (b'{"error":"overloaded"}', Outcome.SERVER_ERROR),
        (b'{"error":{"code":true}}', Outcome.SERVER_ERROR),
        (b'[{"error":{"code":403,"status":"PERMISSION_DENIED"}}]', Outcome.AUTH_ERROR),
    ],
)
def test_an_error_object_under_a_good_status_has_its_codes_outcome(body: bytes, outcome: Outcome) -> None:
    assert of_error_object(detail_of(body)) is outcome


def test_an_unknown_model_is_told_as_a_configuration_matter() -> None:
    detail = detail_of(b'{"error":{"code":"model_not_found","message":"The model \'x\'\\n does not exist."}}')
    assert error_text(detail, Outcome.AUTH_ERROR, 404) == (
        "configuration of this provider (base URL, model name or account): 404: model_not_found: "
        "The model 'x' does not exist."
    )


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 100_000, b"[]", b"7", b"null", b'{"error":7}', b'{"error":[]}'])
def test_an_error_body_of_any_shape_is_read_without_failing(body: bytes) -> None:
    detail = detail_of(body)
    assert error_text(detail, Outcome.SERVER_ERROR, None)
    assert len(error_text(detail_of(b'{"error":"' + b"x" * 9000 + b'"}'), Outcome.SERVER_ERROR, 500)) < 300


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "Thu, 05 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 05 Nov 2026 11:59:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9" * 400}, None),
        ({}, None),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-reset": "12"}, 12.0),
        ({"x-ratelimit-reset": str(int(NOW) + 45)}, 45.0),
        ({"x-ratelimit-reset": str((int(NOW) + 45) * 1000)}, 45.0),
        ({"x-ratelimit-reset-requests": "2026-11-05T12:01:00Z"}, 60.0),
        ({"x-ratelimit-reset-requests": "whenever"}, None),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "9s"}, 1.0),
        (
            {"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "9s", "x-ratelimit-remaining-tokens": "0"},
            9.0,
        ),
        ({"retry-after": "soon", "x-ratelimit-reset-requests": "1s"}, 1.0),
    ],
)
def test_the_wait_is_read_from_any_form_in_use(headers: dict[str, str], wait_s: float | None) -> None:
    assert retry_after_s(headers, NOW) == (None if wait_s is None else pytest.approx(wait_s))


def test_a_server_error_waits_only_when_asked_to() -> None:
    assert asked_wait_s({"x-ratelimit-reset-requests": "60s"}, NOW) is None


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        (b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":3,"completion_tokens":5}}', (3, 5)),
        (b'{"choices":[{"message":{"content":"a"}}],"usage":null,"error":null}', (None, None)),
        (b'{"choices":[{"message":{"content":"a"}}],"usage":{"prompt_tokens":"many"}}', (None, None)),
        (b'{"choices":[{"message":{"content":"a"}}],"timings":{"x":1}}', (None, None)),
        (b'{"choices":["of a shape nobody knows"]}', (None, None)),
    ],
)
def test_tokens_are_read_and_never_cost_an_answer(body: bytes, tokens: tuple[int | None, int | None]) -> None:
    assert check_reply(body, Operation.CHAT) == tokens


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"choices":[',
        b"[]",
        b"null",
        b'{"data":[]}',
        b'{"choices":null}',
        b'{"choices":{}}',
        b"[" * 100_000,
    ],
)
def test_an_answer_that_is_none_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^expected "):
        check_reply(body, Operation.CHAT)


@pytest.mark.parametrize(
    ("delta", "has_content"),
    [
        (b'{"role":"assistant","content":""}', False),
        (b'{"role":"assistant","content":null}', False),
        (b'{"content":"a"}', True),
        (b'{"refusal":"no"}', True),
        (b'{"reasoning_content":"hm"}', True),
        (b'{"tool_calls":[{"index":0}]}', True),
        (b'{"tool_calls":[]}', False),
        (b"{}", False),
        (b"null", False),
    ],
)
def test_a_first_token_is_told_from_a_role(delta: bytes, has_content: bool) -> None:
    (chunk,) = StreamReader(usage_requested=True).read(SseEvent(b'{"choices":[{"delta":' + delta + b"}]}"))
    assert chunk.has_content is has_content


def test_a_stream_is_complete_when_every_choice_has_finished() -> None:
    reader = StreamReader(usage_requested=False)
    assert not reader.complete
    for index, reason, complete in [
        (0, b"null", False),
        (1, b"null", False),
        (1, b'"stop"', False),
        (0, b'"stop"', True),
    ]:
        event = b'{"choices":[{"index":%d,"delta":{"content":"a"},"finish_reason":%s}]}' % (index, reason)
        reader.read(SseEvent(event))
        assert reader.complete is complete


FINISHED = b'{"choices":[{"message":%s,"finish_reason":%s}]}'


@pytest.mark.parametrize(
    ("message", "reason", "empty"),
    [
        (b'{"role":"assistant","content":""}', b'"stop"', True),
        (b'{"role":"assistant","content":null,"tool_calls":[],"refusal":null}', b'"tool_calls"', True),
        (b"null", b'"stop"', True),
        (b'{"content":" "}', b'"stop"', False),
        (b'{"content":null,"tool_calls":[{"id":"1"}]}', b'"tool_calls"', False),
        (b'{"content":null,"refusal":"no"}', b'"stop"', False),
        (b'{"content":""}', b'"length"', False),
        (b'{"content":""}', b'"content_filter"', False),
    ],
)
def test_an_answer_is_empty_when_nothing_is_said_and_nothing_explains_it(
    message: bytes, reason: bytes, empty: bool
) -> None:
    """F-09: response quality."""
    body = FINISHED % (message, reason)
    reader = StreamReader(usage_requested=True)
    reader.read(SseEvent(b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'))
    streamed = SseEvent(body.replace(b'"message"', b'"delta"'))
    if not empty:
        assert check_reply(body, Operation.CHAT) == (None, None)
        assert len(reader.read(streamed)) == 1
        return
    for read in (lambda: check_reply(body, Operation.CHAT), lambda: reader.read(streamed)):
        with pytest.raises(Unusable) as raised:
            read()
        assert raised.value.outcome is Outcome.EMPTY


def test_one_choice_that_speaks_is_an_answer() -> None:
    assert check_reply(b'{"choices":[{"message":{"content":""}},{"message":{"content":"a"}}]}', Operation.CHAT)
    reader = StreamReader(usage_requested=True)
    for event in (b'{"index":0,"delta":{},"finish_reason":"stop"}', b'{"index":1,"delta":{"content":"a"}}'):
        reader.read(SseEvent(b'{"choices":[{"index":1,"delta":{}},' + event + b"]}"))
    assert reader.read(SseEvent(b'{"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}'))


@pytest.mark.parametrize(
    ("content", "reason", "refused"),
    [
        (b'"{\\"a\\": 1}"', b'"stop"', False),
        (b'"Sure:\\n```json\\n{\\"a\\": [1]}\\n```"', b'"stop"', False),
        (b'"[1, 2]"', b'"stop"', False),
        (b'"I would rather not."', b'"stop"', True),
        (b'"{\\"a\\": "', b'"stop"', True),
        (b'"{\\"a\\": "', b'"length"', False),
        (b'[{"type":"text","text":"parts"}]', b'"stop"', False),
    ],
)
def test_an_answer_without_any_json_refuses_the_format_that_was_asked(
    content: bytes, reason: bytes, refused: bool
) -> None:
    """F-09: response quality."""
    body = FINISHED % (b'{"content":' + content + b"}", reason)
    assert check_reply(body, Operation.CHAT, json=False) == (None, None)
    if refused:
        with pytest.raises(Unusable) as raised:
            check_reply(body, Operation.CHAT, json=True)
        assert raised.value.outcome is Outcome.REFUSED_FORMAT
    else:
        assert check_reply(body, Operation.CHAT, json=True) == (None, None)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"response_format":{"type":"json_schema","json_schema":{}}}', True),
        (b'{"response_format":{"type":"json_object"}}', True),
        (b'{"response_format":{"type":"text"}}', False),
        (b'{"response_format":[7]}', False),
        (b"{}", False),
    ],
)
def test_json_is_wanted_when_the_request_says_so(body: bytes, wanted: bool) -> None:
    assert wants_json(_call(body)) is wanted


def test_only_a_usage_chunk_that_nobody_asked_for_is_marked() -> None:
    alone = b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}'
    beside = b'{"choices":[{"delta":{}}],"usage":{"prompt_tokens":3,"completion_tokens":5}}'
    empty = b'{"choices":[],"prompt_filter_results":[]}'
    for data, requested, marked in [
        (alone, False, True),
        (alone, True, False),
        (beside, False, False),
        (empty, False, False),
    ]:
        (chunk,) = StreamReader(usage_requested=requested).read(SseEvent(data))
        assert chunk.usage_requested is not marked
        assert chunk.data == data


def test_an_error_object_and_nonsense_in_a_stream_are_told_apart() -> None:
    reader = StreamReader(usage_requested=True)
    with pytest.raises(Reported):
        reader.read(SseEvent(b'{"error":{"message":"x"}}'))
    for nonsense in (b'{"choices":[{"del', b"7", b'{"choices":[7]}', b"\xff"):
        with pytest.raises(Malformed):
            reader.read(SseEvent(nonsense))


def test_an_error_object_is_no_answer() -> None:
    body = b'{"error":{"message":"x"}}'
    with pytest.raises(Reported) as reported:
        check_reply(body, Operation.CHAT)
    assert reported.value.body == body


def test_listed_models_keep_their_raw_entries() -> None:
    entry = b'{"id": "m", "pricing": {"prompt": 1.10}}'
    assert read_models(b'{"data":[' + entry + b"]}") == [("m", entry)]
    with pytest.raises(Malformed, match="expected a list of models"):
        read_models(b'{"data":[{"name":"m"}]}')


class _NoTransport:
    async def open(self, request: UpstreamRequest) -> UpstreamResponse:
        raise AssertionError(f"nothing is to be sent, got {request}")

    async def prewarm(self, url: str, connections: int, connect_s: float) -> None: ...

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("url", ["", "ftp://h/v1", "http:///v1", "https://h/v1?key=k", "https://u:p@h/v1", "h/v1"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"^base_url of host .*: expected http"):
        OpenAICompatible(url, _NoTransport())


def test_the_key_is_in_no_repr() -> None:
    settings: dict[str, Any] = {"api_key": "sk-very-secret", "headers": {"api-key": "also-secret"}}
    assert repr(OpenAICompatible("https://h/v1/", _NoTransport(), **settings)) == "OpenAICompatible('https://h/v1')"
