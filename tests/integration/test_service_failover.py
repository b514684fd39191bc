"""Failover as callers and operators see it: detection by thresholds, the designated secondary, the return.

Proves F-01 F-02 F-04 F-07 F-08 C-05 over real sockets; each test bears its id.
"""

from typing import Any

import grpc
import openai
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from routecast.v1 import router_pb2, routing_pb2

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import (
    EMBED,
    GPT4,
    QUICK_RETURN,
    Service,
    complete_request,
    details,
    in_process,
    tried,
    until,
)


async def _secondary_serves(service: Service, times: int = 3) -> None:
    for _ in range(times):
        reply = await service.complete()
        assert tried(reply.routing) == [("borealis", "OK")]
        assert not reply.routing.failed_over


async def test_f01_error_rate_past_its_threshold_moves_the_model_to_the_secondary(
    providers: ProviderFleet, tmp_path: Any
) -> None:
    """The log names the metric, what it was, and what it may be."""
    reflex = {"failing_rate": 0.5, "normal_rate": 0.1, "ejection_s": 300}
    async with in_process(providers, tmp_path, policy={"reflex": reflex}) as service:
        for _ in range(3):
            assert tried((await service.complete()).routing) == [("aurora", "OK")]
        await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", status=500))
        for _ in range(4):
            assert tried((await service.complete()).routing) == [("aurora", "SERVER_ERROR"), ("borealis", "OK")]
        assert await service.states() == {"aurora": "EJECTED", "borealis": "ACTIVE", "cirrus": "UNKNOWN"}
        await _secondary_serves(service)

        explained = await service.explain((await service.complete()).routing.attempts[0].decision_id)
        assert explained.chosen_endpoint_id == explained.candidates[0].endpoint_id
        assert explained.candidates[0].provider == "borealis"
        (primary,) = (c for c in explained.candidates if c.provider == "aurora")
        assert primary.exclusion == "health state is ejected"
        assert "aurora" in explained.summary
        assert explained.thresholds["reflex.failing_rate"] == "0.5"

        rows = await service.history("SELECT endpoint, event, metric, value, threshold, to_state FROM transitions")
    (moved,) = (row for row in rows if row[1] == "breach")
    assert moved[0].startswith("aurora")
    assert (moved[2], moved[5]) == ("failure_evidence", "ejected")
    assert moved[3] >= moved[4] > 0


async def test_f02_fallbacks_are_tried_in_the_configured_order(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, region="eu-west", status=502))
    reply = await service.complete()
    assert tried(reply.routing) == [("aurora", "SERVER_ERROR"), ("borealis", "SERVER_ERROR"), ("cirrus", "OK")]
    assert [a.number for a in reply.routing.attempts] == [1, 2, 3]
    assert [a.http_status for a in reply.routing.attempts] == [502, 502, 200]
    assert reply.routing.failed_over
    assert reply.choices[0].message.text.startswith("cirrus received")
    assert len({a.decision_id for a in reply.routing.attempts}) == 3

    rows = await service.history("SELECT number, provider, outcome FROM attempts ORDER BY number")
    assert rows == [(1, "aurora", "server_error"), (2, "borealis", "server_error"), (3, "cirrus", "ok")]


async def test_f02_a_refused_connection_ejects_at_once(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
    assert tried((await service.complete()).routing) == [("aurora", "CONNECT_ERROR"), ("borealis", "OK")]
    await _secondary_serves(service)


async def test_f02_embeddings_fail_over_too(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
    reply = await service.stub.Embed(router_pb2.EmbedRequest(model=EMBED, inputs=["one", "two"]))
    assert tried(reply.routing) == [("aurora", "SERVER_ERROR"), ("borealis", "OK")]
    assert [(e.index, len(e.values)) for e in reply.embeddings] == [(0, 8), (1, 8)]
    assert sum(v * v for v in reply.embeddings[0].values) == pytest.approx(1.0, abs=1e-5)
    answered = await service.sdk.embeddings.create(model=EMBED, input=["one", "two"])
    assert answered.data[1].embedding == pytest.approx(list(reply.embeddings[1].values))


async def test_f07_no_secondary_configured_is_a_clear_error(providers: ProviderFleet, tmp_path: Any) -> None:
    alone = {"id": GPT4, "endpoints": [{"provider": "aurora", "provider_model": GPT4}]}
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
    async with in_process(providers, tmp_path, models=[alone]) as service:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.complete()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        found = details(raised.value)
        assert (found[ErrorInfo].reason, found[ErrorInfo].domain) == ("ATTEMPTS_EXHAUSTED", "routecast")
        assert found[RetryInfo].retry_delay.ToTimedelta().total_seconds() > 0
        assert tried(found[routing_pb2.RoutingReport]) == [("aurora", "SERVER_ERROR")]


async def test_f07_all_providers_out_is_a_clear_error_on_both_edges(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, region="eu-west"))
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, region="us-east"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.complete()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    found = details(refused.value)
    assert found[ErrorInfo].reason == "ATTEMPTS_EXHAUSTED"
    assert found[RetryInfo].retry_delay.ToTimedelta().total_seconds() > 0
    assert [provider for provider, _ in tried(found[routing_pb2.RoutingReport])] == ["aurora", "borealis", "cirrus"]

    with pytest.raises(openai.InternalServerError) as raised:
        await service.sdk.chat.completions.create(model=GPT4, messages=[{"role": "user", "content": "hello"}])
    assert raised.value.status_code == 503
    error: Any = raised.value.body
    assert (error["type"], error["code"]) == ("service_unavailable", "attempts_exhausted")
    assert [(a["provider"], a["outcome"], a["status"]) for a in error["attempts"]] == [
        (name, "server_error", 503) for name in ("aurora", "borealis", "cirrus")
    ]
    assert int(raised.value.response.headers["retry-after"]) >= 1
    assert raised.value.response.headers["x-should-retry"] == "false"

    # Still alive, and well again as soon as a provider is: ejected endpoints beat a refusal.
    await providers.clear()
    assert (await service.complete()).routing.provider == "aurora"


async def test_f07_all_rate_limited_says_when_to_come_back(service: Service, providers: ProviderFleet) -> None:
    for region in ("eu-west", "us-east"):
        await providers.inject(Fault(kind=FaultKind.RATE_LIMIT, region=region, retry_after_s=30))
    with pytest.raises(grpc.aio.AioRpcError) as first:
        await service.complete()
    assert first.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(first.value)[ErrorInfo].reason == "RATE_LIMITED"
    received = [len(providers.requests(name)) for name in providers.names]

    with pytest.raises(openai.RateLimitError) as second:
        await service.sdk.chat.completions.create(model=GPT4, messages=[{"role": "user", "content": "hello"}])
    assert 0 < int(second.value.response.headers["retry-after-ms"]) <= 30_000
    assert [len(providers.requests(name)) for name in providers.names] == received, "nobody was asked during the pause"


async def test_f08_traffic_returns_after_probes_and_canary(providers: ProviderFleet, tmp_path: Any) -> None:
    policy = {"reflex": {"ejection_s": 0.1}, "failback": QUICK_RETURN}
    async with in_process(providers, tmp_path, policy=policy) as service:
        assert (await service.complete()).routing.provider == "aurora"
        await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
        for _ in range(2):
            assert (await service.complete()).routing.provider == "borealis"
        before = len(providers.requests("aurora"))
        await providers.until(lambda: len(providers.requests("aurora")) > before)  # the probe that fails
        await providers.clear()

        served: list[str] = []

        async def back() -> bool:
            served.append((await service.complete()).routing.provider)
            return (await service.states())["aurora"] == "ACTIVE"

        await until(back)
        assert {"aurora", "borealis"} <= set(served), "a canary shares the traffic before it has all of it"
        assert (await service.complete()).routing.provider == "aurora"

        moves = await service.history(
            "SELECT from_state, to_state, event, actor FROM transitions"
            " WHERE provider = 'aurora' ORDER BY time, snapshot_version"
        )
        probes = await service.history("SELECT DISTINCT outcome FROM attempts WHERE kind = 'probe' ORDER BY outcome")
    assert moves[:3] == [
        ("unknown", "active", "proven", "reflex"),
        ("active", "ejected", "breach", "reflex"),
        ("ejected", "probing", "ejection_over", "plan"),
    ]
    assert moves[-2:] == [("probing", "canary", "probes_passed", "plan"), ("canary", "active", "plan_done", "plan")]
    assert probes == [("ok",), ("server_error",)]


@pytest.mark.parametrize("kind", [FaultKind.SERVER_ERROR, FaultKind.TRUNCATE, FaultKind.MALFORMED, FaultKind.RESET])
async def test_f04_a_request_that_must_not_run_twice_is_not_sent_again(
    service: Service, providers: ProviderFleet, kind: FaultKind
) -> None:
    """Once a provider may have executed it, nobody else gets it."""
    await providers.inject(Fault(kind=kind, provider="aurora"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.complete(idempotent=False)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(tried(details(raised.value)[routing_pb2.RoutingReport])) == 1
    assert (len(providers.requests("aurora")), len(providers.requests("borealis"))) == (1, 0)

    async with service.http.post(
        f"{service.url}/v1/chat/completions",
        json={"model": GPT4, "messages": [{"role": "user", "content": "once"}]},
        headers={"x-routecast-idempotent": "false"},
    ) as response:
        assert response.status == 503
    assert (len(providers.requests("aurora")), len(providers.requests("borealis"))) == (2, 0)


@pytest.mark.parametrize("kind", [FaultKind.REFUSE, FaultKind.RATE_LIMIT])
async def test_f04_what_cannot_have_run_is_sent_elsewhere(
    service: Service, providers: ProviderFleet, kind: FaultKind
) -> None:
    await providers.inject(Fault(kind=kind, provider="aurora"))
    assert (await service.complete(idempotent=False)).routing.provider == "borealis"


async def test_c05_the_report_says_what_serving_took(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="aurora"))
    reply = await service.stub.Complete(complete_request(agent="billing"), metadata=(("x-request-id", "req-1"),))
    report, usage = reply.routing, reply.usage
    assert (report.request_id, report.provider, report.provider_model) == ("req-1", "borealis", "gpt-4")
    assert (report.attempts[-1].number, len(report.attempts)) == (2, 2)
    assert (report.input_usd_per_mtok, report.output_usd_per_mtok) == (20, 40)
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0
    expected_usd = (usage.input_tokens * 20 + usage.output_tokens * 40) / 1e6
    assert report.cost_usd == pytest.approx(expected_usd)
    rows = await service.history("SELECT request_id, agent, provider, attempts, failed_over, cost_usd FROM requests")
    assert rows == [("req-1", "billing", "borealis", 2, True, pytest.approx(expected_usd))]


async def test_advised_callers_report_outcomes_and_health_follows(service: Service) -> None:
    asked = router_pb2.RouteRequest(model=GPT4)
    advice = await service.stub.Route(asked)
    assert [c.provider for c in advice.candidates] == ["aurora", "borealis", "cirrus"]
    assert advice.candidates[0].base_url.startswith("http://127.0.0.1:")

    async def reports() -> Any:
        for _ in range(3):
            report = router_pb2.ReportOutcomeRequest(
                decision_id=advice.decision_id,
                endpoint_id=advice.candidates[0].endpoint_id,
                outcome=routing_pb2.OUTCOME_SERVER_ERROR,
                http_status=503,
            )
            report.latency.FromMilliseconds(20)
            yield report

    assert (await service.stub.ReportOutcome(reports())).accepted == 3
    assert (await service.states())["aurora"] == "EJECTED"
    assert [c.provider for c in (await service.stub.Route(asked)).candidates] == ["borealis", "cirrus"]
    rows = await service.history("SELECT DISTINCT kind, decision_id, outcome, http_status FROM attempts")
    assert rows == [("advised", advice.decision_id, "server_error", 503)]
