"""Bad input over both edges: what is wrong, where, and what was expected; the service goes on."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from routecast.v1 import chat_pb2, router_pb2, routing_pb2
from yarl import URL

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import EMBED, GPT4, Service, complete_request, details, in_process, user

Pb = router_pb2
RAW = b'{"role":"user","content":"x"}'


def _chat(**fields: Any) -> Pb.CompleteRequest:
    return Pb.CompleteRequest(chat=chat_pb2.ChatRequest(**{"model": GPT4, "messages": [user("x")], **fields}))


def _message(**fields: Any) -> Pb.CompleteRequest:
    return _chat(messages=[user("fine"), chat_pb2.ChatMessage(**fields)])


@pytest.mark.parametrize(
    ("method", "request_", "field", "expected"),
    [
        ("Complete", Pb.CompleteRequest(), "chat.model", "expected a canonical model id"),
        ("Complete", _chat(messages=[]), "chat.messages", "expected at least one message"),
        ("Complete", _message(text="no role"), "chat.messages[1].role", "expected a role"),
        ("Complete", _message(role=99), "chat.messages[1].role", "expected a role"),
        ("Complete", _message(raw_json=b"{"), "chat.messages[1].raw_json", "expected a JSON object"),
        ("Complete", _message(raw_json=b"[1]"), "chat.messages[1].raw_json", "expected a JSON object"),
        ("Complete", _message(raw_json=b'{"a":"\xff"}'), "chat.messages[1].raw_json", "expected a JSON object"),
        ("Complete", _message(raw_json=RAW, text="both"), "chat.messages[1]", "expected raw_json alone"),
        ("Complete", _chat(extra_json=b"not json"), "chat.extra_json", "expected a JSON object"),
        ("Complete", _chat(extra_json=b'{"stream":true,"model":"x"}'), "chat.extra_json", "model, stream"),
        ("Complete", complete_request(objective=77), "routing.objective", "77 is no Objective"),
        ("Embed", Pb.EmbedRequest(inputs=["x"]), "model", "expected a canonical model id"),
        ("Embed", Pb.EmbedRequest(model=EMBED), "inputs", "expected at least one input"),
        ("Embed", Pb.EmbedRequest(model=EMBED, inputs=["x"], extra_json=b'{"input":1}'), "extra_json", "input"),
        ("Route", Pb.RouteRequest(), "model", "expected a canonical model id"),
        (
            "Route",
            Pb.RouteRequest(
                model=GPT4,
                needs=[55],  # type: ignore[list-item]  # from a newer client
            ),
            "needs",
            "55 is no Capability",
        ),
        ("Route", Pb.RouteRequest(model=GPT4, input_tokens=-1), "input_tokens", "expected 0 or more"),
        ("Route", Pb.RouteRequest(model=EMBED, needs=[routing_pb2.CAPABILITY_CHAT]), "model", "lacks chat"),
        ("ListModels", Pb.ListModelsRequest(page_size=-1), "page_size", "expected 0 or more"),
        ("ExplainRoute", Pb.ExplainRouteRequest(), "subject", "expected decision_id or request"),
    ],
)
async def test_grpc_names_the_field_and_the_expectation(
    service: Service, method: str, request_: Any, field: str, expected: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await getattr(service.stub, method)(request_)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    found = details(raised.value)
    assert found[ErrorInfo].reason == "INVALID_ARGUMENT"
    (violation,) = found[BadRequest].field_violations
    assert violation.field == field
    assert expected in violation.description


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        (Pb.ReportOutcomeRequest(endpoint_id="nobody"), grpc.StatusCode.NOT_FOUND, "reports[0].endpoint_id"),
        (Pb.ReportOutcomeRequest(endpoint_id=f"aurora:{GPT4}"), grpc.StatusCode.INVALID_ARGUMENT, "reports[0].outcome"),
        (
            Pb.ReportOutcomeRequest(endpoint_id=f"aurora:{GPT4}", outcome=routing_pb2.OUTCOME_OK),
            grpc.StatusCode.INVALID_ARGUMENT,
            "reports[0].latency",
        ),
    ],
)
async def test_grpc_reports_are_checked_one_by_one(
    service: Service, report: Pb.ReportOutcomeRequest, code: grpc.StatusCode, said: str
) -> None:
    async def reports() -> Any:
        yield report

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.ReportOutcome(reports())
    assert raised.value.code() is code
    assert said in (raised.value.details() or "")


@pytest.mark.parametrize(
    ("field", "seconds"), [("latency", -5.0), ("time_to_first_token", -1.0), ("time_to_first_token", 60.0)]
)
async def test_grpc_reports_of_impossible_durations_are_refused(service: Service, field: str, seconds: float) -> None:
    report = Pb.ReportOutcomeRequest(endpoint_id=f"aurora:{GPT4}", outcome=routing_pb2.OUTCOME_OK)
    report.latency.FromMilliseconds(10)
    getattr(report, field).FromMicroseconds(round(seconds * 1e6))

    async def reports() -> Any:
        yield report

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.ReportOutcome(reports())
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    (violation,) = details(raised.value)[BadRequest].field_violations
    assert violation.field == f"reports[0].{field}"


@pytest.mark.parametrize("method", ["Complete", "Route", "Embed", "StreamComplete"])
async def test_grpc_an_unknown_model_lists_the_known_ones(service: Service, method: str) -> None:
    request: Any = {
        "Complete": _chat(model="gpt-9"),
        "Route": Pb.RouteRequest(model="gpt-9"),
        "Embed": Pb.EmbedRequest(model="gpt-9", inputs=["x"]),
        "StreamComplete": Pb.StreamCompleteRequest(chat=chat_pb2.ChatRequest(model="gpt-9", messages=[user("x")])),
    }[method]
    call = getattr(service.stub, method)(request)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await (call.read() if method == "StreamComplete" else call)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    info = details(raised.value)[ErrorInfo]
    assert info.reason == "UNKNOWN_MODEL"
    assert info.metadata["known"] == f"{GPT4}, {EMBED}"


async def test_grpc_an_unknown_decision_is_not_found(service: Service) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.explain("feedface")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert details(raised.value)[ErrorInfo].reason == "UNKNOWN_DECISION"


async def test_grpc_list_models_pages(service: Service) -> None:
    first = await service.stub.ListModels(Pb.ListModelsRequest(page_size=1))
    assert [model.id for model in first.models] == [GPT4]
    second = await service.stub.ListModels(Pb.ListModelsRequest(page_size=1, page_token=first.next_page_token))
    assert ([model.id for model in second.models], second.next_page_token) == ([EMBED], "")
    assert [e.provider for e in first.models[0].endpoints] == ["aurora", "borealis", "cirrus"]
    assert first.models[0].endpoints[1].provider_model == "gpt-4"


@pytest.mark.parametrize("timeout_s", [0.05])
async def test_grpc_the_callers_deadline_bounds_all_attempts(
    service: Service, providers: ProviderFleet, timeout_s: float
) -> None:
    await providers.inject(*(Fault(kind=FaultKind.HANG, region=region) for region in ("eu-west", "us-east")))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.Complete(complete_request(), timeout=timeout_s)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await providers.until(lambda: all(providers.stats(name).in_flight == 0 for name in providers.names))


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": GPT4, "messages": [{"role": "user", "content": "x"}], **fields}).encode()


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("chat/completions", b"", "body", "expected a JSON object"),
        ("chat/completions", b'{"model": ', "body", "expected a JSON object"),
        ("chat/completions", b"[]", "body", "expected a JSON object"),
        ("chat/completions", b'{"model":"\xff"}', "body", "expected a JSON object"),
        ("chat/completions", b'{"model":"m","messages":' + b"[" * 200_000, "body", "expected a JSON object"),
        ("chat/completions", b'{"messages":[]}', "model", "expected a non-empty string"),
        ("chat/completions", _body(model=7), "model", "expected a non-empty string"),
        ("chat/completions", _body(model=""), "model", "expected a non-empty string"),
        ("chat/completions", _body(messages=[]), "messages", "expected a non-empty array"),
        ("chat/completions", _body(messages="hello"), "messages", "expected a non-empty array"),
        ("chat/completions", _body(stream="yes"), "stream", "expected true or false"),
        ("embeddings", b'{"input":"x"}', "model", "expected a non-empty string"),
        ("embeddings", json.dumps({"model": GPT4, "input": "x"}).encode(), "model", "lacks embeddings"),
    ],
)
async def test_http_answers_in_the_openai_shape(
    service: Service, path: str, body: bytes, param: str, said: str
) -> None:
    async with service.http.post(f"{service.url}/v1/{path}", data=body) as response:
        assert response.status == 400
        assert response.headers["content-type"].startswith("application/json")
        assert response.headers["x-request-id"]
        error = (await response.json())["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "invalid_argument")
    assert said in error["message"]


async def test_http_an_unknown_model_is_404_with_the_known_ones(service: Service) -> None:
    async with service.http.post(f"{service.url}/v1/chat/completions", data=_body(model="gpt-9")) as response:
        assert response.status == 404
        error = (await response.json())["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert GPT4 in error["message"]
    async with service.http.get(f"{service.url}/v1/models/gpt-9") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405)],
)
async def test_http_unknown_paths_and_methods(service: Service, method: str, path: str, status: int) -> None:
    async with service.http.request(method, f"{service.url}{path}") as response:
        assert response.status == status
        error = (await response.json())["error"]
        if status == 405:
            assert response.headers["allow"]
    assert error["type"] == "invalid_request_error"
    assert path in error["message"]


async def test_http_a_bad_routing_header_is_named(service: Service) -> None:
    headers = {"x-routecast-objective": "best"}
    async with service.http.post(f"{service.url}/v1/chat/completions", data=_body(), headers=headers) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert error["param"] == "x-routecast-objective"
    assert "cheapest" in error["message"]


async def test_http_an_oversize_body_is_413(providers: ProviderFleet, tmp_path: Path) -> None:
    server = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "max_body_bytes": 2048}
    async with in_process(providers, tmp_path, server=server) as service:
        big = _body(messages=[{"role": "user", "content": "x" * 4096}])
        async with service.http.post(f"{service.url}/v1/chat/completions", data=big) as response:
            assert response.status == 413
            assert (await response.json())["error"]["type"] == "invalid_request_error"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.complete(user("x" * 4096))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await service.complete()).routing.provider == "aurora"


@pytest.mark.parametrize("query", ["a=b c", "a=%20b"])
async def test_http_odd_queries_neither_break_nor_eject(service: Service, query: str) -> None:
    url = URL(f"{service.url}/v1/chat/completions?{query.replace(' ', '+')}", encoded=True)
    async with service.http.post(url, data=_body()) as response:
        assert response.status == 200


@pytest.mark.parametrize("request_id", [b"a\x01b", b"caf\xc3\xa9", b"caf\xe9", b"x" * 6000])
async def test_http_request_ids_cannot_forge_headers(service: Service, request_id: bytes) -> None:
    """A request id of any length or content is either taken as it is or not at all; it never costs a 500."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.ports.http)
    body = _body()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: %s\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (request_id, len(body), body)
    )
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.split(b"\r\n")[0] in (b"HTTP/1.1 200 OK", b"HTTP/1.0 400 Bad Request", b"HTTP/1.1 400 Bad Request")
    assert b"\x01" not in answer.split(b"\r\n\r\n")[0]


@pytest.mark.parametrize("name", ["x-routecast-session", "x-routecast-agent", "x-routecast-region", "traceparent"])
@pytest.mark.parametrize("key", [b"", b"idempotency-key: k\r\n"], ids=["", "keyed"])
async def test_http_a_header_that_is_no_utf8_is_refused_by_name(service: Service, name: str, key: bytes) -> None:
    """What nobody could write down, or pass on, is not taken: neither history nor ledger would have the request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.ports.http)
    body = json.dumps({"model": EMBED, "input": "x"}).encode()
    writer.write(
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s: caf\xe9\r\n%s"
        b"Content-Length: %d\r\n\r\n%s" % (name.encode(), key, len(body), body)
    )
    head, _, told = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(told)["error"]["param"] == name


async def test_unknown_models_do_not_grow_the_metrics(service: Service) -> None:
    """What callers make up must not become a label: every value of one stays in memory for ever."""
    for number in range(3):
        async with service.http.post(f"{service.url}/v1/chat/completions", data=_body(model=f"made-up-{number}")):
            pass
    async with service.http.get(f"{service.url}/metrics") as response:
        assert "made-up" not in await response.text()


async def test_http_lists_models_health_and_metrics(service: Service) -> None:
    listed = await service.sdk.models.list()
    assert [model.id for model in listed.data] == [GPT4, EMBED]
    assert (await service.sdk.models.retrieve(GPT4)).id == GPT4
    await service.complete()
    async with service.http.get(f"{service.url}/healthz") as response:
        assert (response.status, await response.json()) == (200, {"status": "serving"})
    async with service.http.get(f"{service.url}/metrics") as response:
        text = await response.text()
    assert f'routecast_attempts_total{{endpoint="aurora:{GPT4}",kind="live",outcome="ok"}} 1.0' in text
    assert f'routecast_health_state{{endpoint="aurora:{GPT4}",state="active"}} 1.0' in text
