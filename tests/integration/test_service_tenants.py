"""Tenants over real sockets (issue 5, item 6; L-10): who may ask, for how much, and with whose key."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from routecast.v1 import router_pb2

from service.tenancy.keys import KEY_BYTES, SALT_BYTES, hash_of, new_key
from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import STREAM_HEAD, answer, event, refuse, scripted, settled
from tests.service_under_test import (
    DEADLINE_S,
    GPT4,
    Service,
    complete_request,
    details,
    in_process,
    read_history,
    stream_request,
    until,
)
from tests.wire_server import Exchange

ACME, BETA = (new_key(bytes([number] * KEY_BYTES)) for number in (1, 2))
HELLO: Any = [{"role": "user", "content": "hello"}]


def _tenant(name: str, key: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "api_keys": [hash_of(key, bytes(SALT_BYTES))], **fields}


def _as(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def _complete(service: Service, key: str, **options: Any) -> router_pb2.CompleteResponse:
    return await service.stub.Complete(complete_request(**options), timeout=DEADLINE_S, metadata=_as(key))


async def _refused(service: Service, key: str, **options: Any) -> tuple[grpc.aio.AioRpcError, Any]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _complete(service, key, **options)
    return raised.value, details(raised.value)


async def _asks(service: Service, key: str, **fields: Any) -> Any:
    """The raw response of an OpenAI client with that key."""
    return await service.sdk.with_options(api_key=key).chat.completions.with_raw_response.create(
        model=GPT4, messages=HELLO, **fields
    )


async def test_who_shows_no_known_key_is_refused_over_http(providers: ProviderFleet, tmp_path: Path) -> None:
    """As OpenAI refuses, so that its clients raise what they raise there; health needs no key."""
    async with scripted(providers, tmp_path, "first", tenants=[_tenant("acme", ACME)]) as (service, upstreams):
        for key in ("none", BETA, ACME[:-1]):
            with pytest.raises(openai.AuthenticationError) as raised:
                await _asks(service, key)
            assert raised.value.code == "invalid_api_key"
            assert ACME[-43:] not in str(raised.value)
        for path in ("/v1/models", f"/v1/models/{GPT4}"):
            async with service.http.get(f"{service.url}{path}") as response:
                body = await response.json()
                assert (response.status, body["error"]["code"]) == (401, "api_key_missing")
            async with service.http.get(f"{service.url}{path}", headers=dict(_as(ACME))) as response:
                assert response.status == 200
        async with service.http.get(f"{service.url}/healthz") as response:
            assert response.status == 200
        assert (await _asks(service, ACME)).http_response.status_code == 200
        assert len(upstreams["first"].bodies) == 1


async def test_who_shows_no_known_key_is_refused_over_grpc(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", tenants=[_tenant("acme", ACME)]) as (service, upstreams):

        async def reports() -> Any:
            async def one() -> Any:
                yield router_pb2.ReportOutcomeRequest(endpoint_id=f"first:{GPT4}")

            return await service.stub.ReportOutcome(one(), timeout=DEADLINE_S)

        async def streams() -> None:
            async for _ in service.stub.StreamComplete(stream_request(), timeout=DEADLINE_S):
                pass

        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: service.stub.Complete(complete_request(), timeout=DEADLINE_S),
            lambda: service.stub.Embed(router_pb2.EmbedRequest(model=GPT4, inputs=["x"]), timeout=DEADLINE_S),
            lambda: service.stub.Route(router_pb2.RouteRequest(model=GPT4), timeout=DEADLINE_S),
            lambda: service.stub.ListModels(router_pb2.ListModelsRequest(), timeout=DEADLINE_S),
            lambda: service.stub.ExplainRoute(router_pb2.ExplainRouteRequest(decision_id="x"), timeout=DEADLINE_S),
            reports,
            streams,
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call()
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert details(raised.value)[ErrorInfo].reason == "API_KEY_MISSING"
        error, found = await _refused(service, BETA)
        assert (error.code(), found[ErrorInfo].reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_API_KEY")
        assert BETA[-43:] not in (error.details() or "")
        assert (await _complete(service, ACME)).choices[0].message.text == "well"
        assert len(upstreams["first"].bodies) == 1


async def test_a_tenant_is_on_record_and_its_key_is_nowhere(
    providers: ProviderFleet, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key may stand in the environment too. Naming another tenant in a header does nothing."""
    monkeypatch.setenv("ACME_KEY", ACME)
    caplog.set_level(logging.DEBUG)
    tenants = [{"name": "acme", "api_keys": ["${ACME_KEY}"]}, _tenant("beta", BETA)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        headers = {"x-routecast-tenant": "beta", "x-tenant": "beta"}
        await _asks(service, ACME, extra_headers=headers)
        await _refused(service, ACME + "x")
        sent = upstreams["first"].server.exchanges[0]
        assert not any(ACME in value for _, value in sent.headers)
        await service.stack.aclose()
    named = "SELECT tenant FROM requests UNION SELECT tenant FROM attempts UNION SELECT tenant FROM decisions"
    assert read_history(service.data_dir, named) == [("acme",)]
    assert read_history(service.data_dir, "SELECT tenant FROM usage") == [("acme",)]
    secret = ACME[-43:]
    assert secret not in caplog.text
    kept = [path for path in service.data_dir.rglob("*") if path.is_file()]
    assert kept
    assert not any(secret.encode() in path.read_bytes() for path in kept)


async def test_tokens_are_reserved_and_what_is_not_used_comes_back(providers: ProviderFleet, tmp_path: Path) -> None:
    """A minute has 1,000 tokens, a request may need 900, and uses 15: a second one at the same time is refused."""
    tenants = [_tenant("acme", ACME, tokens_per_min=1000, requests_per_min=100), _tenant("beta", BETA)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        first, go = upstreams["first"], asyncio.Event()

        async def waiting(exchange: Exchange) -> None:
            await go.wait()
            await answer(exchange)

        first.script = waiting
        asking = asyncio.create_task(_asks(service, ACME, max_tokens=900))
        await first.until_asked(1)
        with pytest.raises(openai.RateLimitError) as limited:
            await _asks(service, ACME, max_tokens=900)
        assert limited.value.code == "tenant_tokens_exhausted"
        headers = limited.value.response.headers
        assert 40 <= int(headers["retry-after"]) <= 60
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert int(headers["x-ratelimit-remaining-tokens"]) < 200
        others = asyncio.create_task(_complete(service, BETA))
        await first.until_asked(2)
        go.set()
        await others
        answered = (await asking).headers
        assert int(answered["x-ratelimit-remaining-tokens"]) >= 980
        assert answered["x-ratelimit-limit-requests"] == "100"
        assert (await _asks(service, ACME, max_tokens=900)).http_response.status_code == 200
        with pytest.raises(openai.RateLimitError) as never:
            await _asks(service, ACME, max_tokens=2000)
        assert never.value.response.headers["x-should-retry"] == "false"
        assert "retry-after" not in never.value.response.headers


async def test_requests_per_minute_over_grpc_with_retry_info(providers: ProviderFleet, tmp_path: Path) -> None:
    tenants = [_tenant("acme", ACME, requests_per_min=2), _tenant("beta", BETA)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        for _ in range(2):
            await _complete(service, ACME)
        error, found = await _refused(service, ACME)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found[ErrorInfo].reason == "TENANT_REQUESTS_EXHAUSTED"
        assert 20 <= found[RetryInfo].retry_delay.ToSeconds() <= 30
        await _complete(service, BETA)
        assert len(upstreams["first"].bodies) == 3
        rows = await service.history("SELECT tenant, status, count(*) FROM requests GROUP BY ALL ORDER BY ALL")
    assert rows == [("acme", "TENANT_REQUESTS_EXHAUSTED", 1), ("acme", "ok", 2), ("beta", "ok", 1)]


async def test_refusals_make_no_series_of_metrics_for_models_that_are_none(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Who is over its limit is refused before anybody looks at the model, and may send any name."""
    async with scripted(providers, tmp_path, "first", tenants=[_tenant("acme", ACME, requests_per_min=1)]) as (
        service,
        _,
    ):
        await _complete(service, ACME)
        client = service.sdk.with_options(api_key=ACME)
        for name in ("made-up-1", GPT4):
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model=name, messages=HELLO)
        async with service.http.get(f"{service.url}/metrics") as response:
            shown = await response.text()
        assert "made-up-1" not in shown
        series = (
            'routecast_requests_total{edge="http",method="complete",model="%s",status="TENANT_REQUESTS_EXHAUSTED"} 1.0'
        )
        assert series % GPT4 in shown
        assert series % "" in shown


async def test_a_failed_request_gives_its_tokens_back(providers: ProviderFleet, tmp_path: Path) -> None:
    tenants = [_tenant("acme", ACME, tokens_per_min=1000)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        upstreams["first"].script = refuse("400 Bad Request")
        for _ in range(3):
            with pytest.raises(openai.BadRequestError):
                await _asks(service, ACME, max_tokens=900)


async def test_concurrency_is_limited_and_comes_back_when_a_caller_leaves(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """A stream counts until it ends, and one that is left is paid for as far as it came."""
    tenants = [_tenant("acme", ACME, max_concurrent=1, tokens_per_min=1000)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):

        async def talks_on(exchange: Exchange) -> None:
            await exchange.send(STREAM_HEAD, *(event(str(number)) for number in range(40)))
            await exchange.gone()

        upstreams["first"].script = talks_on
        call = service.stub.StreamComplete(stream_request(), metadata=_as(ACME), timeout=DEADLINE_S)
        for _ in range(40):
            await call.read()
        error, found = await _refused(service, ACME)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found[ErrorInfo].reason == "TENANT_CONCURRENCY_EXHAUSTED"
        call.cancel()
        await upstreams["first"].until_open(0)
        upstreams["first"].script = answer

        async def is_free() -> bool:
            try:
                await _complete(service, ACME)
            except grpc.aio.AioRpcError:
                return False
            return True

        await until(is_free)
        left = int((await _asks(service, ACME)).headers["x-ratelimit-remaining-tokens"])
        assert 1000 - 40 - 2 * 15 - 60 <= left <= 1000 - 40 - 2 * 15 + 20


async def test_a_spent_budget_says_when_it_renews_also_after_a_restart(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """15 tokens at 10 USD per million are 0.00015 USD; the budget pays for one such answer and a bit."""
    tenants = [_tenant("acme", ACME, budget_usd_per_month=0.0002), _tenant("beta", BETA, budget_usd_per_day=1)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, _):
        await _asks(service, ACME, max_tokens=5)
        with pytest.raises(openai.RateLimitError) as spent:
            await _asks(service, ACME, max_tokens=5)
        assert spent.value.code == "tenant_budget_exhausted"
        assert spent.value.type == "insufficient_quota"
        assert "0.000150 USD spent" in spent.value.message
        assert spent.value.response.headers["x-should-retry"] == "false"
        assert int(spent.value.response.headers["retry-after"]) <= 31 * 86400
        await _complete(service, BETA)
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        error, found = await _refused(service, ACME)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found[ErrorInfo].reason == "TENANT_BUDGET_EXHAUSTED"
        assert not upstreams["first"].bodies
        await _complete(service, BETA)


async def test_a_replay_costs_a_request_and_no_tokens(providers: ProviderFleet, tmp_path: Path) -> None:
    tenants = [_tenant("acme", ACME, tokens_per_min=100_000, requests_per_min=100)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        keyed = {"Idempotency-Key": "k"}
        before = (await _asks(service, ACME, extra_headers=keyed)).headers
        after = (await _asks(service, ACME, extra_headers=keyed)).headers
        assert after["x-routecast-replayed"] == "true"
        assert int(after["x-ratelimit-remaining-tokens"]) >= int(before["x-ratelimit-remaining-tokens"])
        assert int(after["x-ratelimit-remaining-requests"]) <= int(before["x-ratelimit-remaining-requests"])
        assert len(upstreams["first"].bodies) == 1


async def test_leaving_an_execution_to_its_key_does_not_get_it_for_nothing(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Its caller leaves, it goes on, and the budget pays for it."""
    tenants = [_tenant("acme", ACME, budget_usd_per_day=0.0002)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        first, go = upstreams["first"], asyncio.Event()

        async def waiting(exchange: Exchange) -> None:
            await go.wait()
            await answer(exchange)

        first.script = waiting
        keyed = complete_request()
        keyed.idempotency_key = "k"
        leaving = service.stub.Complete(keyed, metadata=_as(ACME), timeout=DEADLINE_S)
        await first.until_asked(1)
        leaving.cancel()
        go.set()

        async def is_entered() -> bool:
            return read_history(service.data_dir, "SELECT count(*) FROM usage") == [(1,)]

        await until(is_entered)
        _, found = await _refused(service, ACME)
        assert found[ErrorInfo].reason == "TENANT_BUDGET_EXHAUSTED"
        assert len(first.bodies) == 1


async def test_the_policy_of_a_tenant_names_providers_and_a_price(providers: ProviderFleet, tmp_path: Path) -> None:
    tenants = [
        _tenant("acme", ACME, allowed_providers=["second"]),
        _tenant("beta", BETA, max_cost_usd=0.001),
    ]
    async with scripted(providers, tmp_path, "first", "second", tenants=tenants) as (service, upstreams):
        assert (await _complete(service, ACME)).routing.provider == "second"
        upstreams["second"].script = refuse("500 Internal Server Error")
        error, _ = await _refused(service, ACME)
        assert "'first' is not among those allowed: second" in (error.details() or "")
        assert not upstreams["first"].bodies
        assert (await _asks(service, BETA, max_tokens=5)).http_response.status_code == 200
        with pytest.raises(openai.APIStatusError, match="more than the budget"):
            await _asks(service, BETA, max_tokens=1000, extra_headers={"x-routecast-max-cost-usd": "5"})


async def test_a_tenants_own_key_reaches_the_provider_and_its_refusal_is_its_own(
    providers: ProviderFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """acme's key is bad: acme goes elsewhere, beta stays, and the endpoint stays in service."""
    monkeypatch.setenv("ACME_FIRST", "acme-own")
    tenants = [_tenant("acme", ACME, credentials={"first": "${ACME_FIRST}"}), _tenant("beta", BETA)]
    async with scripted(providers, tmp_path, "first", "second", tenants=tenants) as (service, upstreams):

        async def particular(exchange: Exchange) -> None:
            bad = exchange.header("authorization") == ["Bearer acme-own"]
            await (refuse("401 Unauthorized")(exchange) if bad else answer(exchange))

        upstreams["first"].script = particular
        report = (await _complete(service, ACME)).routing
        assert [attempt.provider for attempt in report.attempts] == ["first", "second"]
        assert upstreams["first"].server.exchanges[0].header("authorization") == ["Bearer acme-own"]
        assert not upstreams["second"].server.exchanges[0].header("authorization")
        assert [a.provider for a in (await _complete(service, ACME)).routing.attempts] == ["second"]
        assert (await _complete(service, BETA)).routing.provider == "first"


async def test_another_tenants_decisions_and_sessions_are_its_own(providers: ProviderFleet, tmp_path: Path) -> None:
    tenants = [_tenant("acme", ACME), _tenant("beta", BETA)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        served = await _complete(service, ACME, session_id="s")
        request = router_pb2.ExplainRouteRequest(decision_id=served.routing.attempts[0].decision_id)
        explained = await service.stub.ExplainRoute(request, metadata=_as(ACME), timeout=DEADLINE_S)
        assert explained.chosen_endpoint_id == f"first:{GPT4}"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.stub.ExplainRoute(request, metadata=_as(BETA), timeout=DEADLINE_S)
        assert details(raised.value)[ErrorInfo].reason == "UNKNOWN_DECISION"
        await _complete(service, BETA, session_id="s")
        assert len(upstreams["first"].bodies[-1]["messages"]) == 1


@pytest.mark.parametrize(
    ("tenants", "problem"),
    [
        ([{"name": "a", "api_keys": [ACME]}], "tenants[0].api_keys[0] (line"),
        ([{"name": "a", "api_keys": []}], "at least 1 item"),
        ([_tenant("a", ACME), _tenant("a", BETA)], "'a' is declared twice"),
        ([_tenant("a", ACME), _tenant("b", ACME)], "is 'a''s already"),
        ([_tenant("a", ACME, allowed_providers=["nowhere"])], "unknown provider 'nowhere'"),
        ([_tenant("a", ACME, credentials={"aurora": "sk-literal-secret"})], "not a key"),
    ],
)
async def test_a_wrong_configuration_is_refused_without_telling_a_secret(
    providers: ProviderFleet, tmp_path: Path, tenants: Any, problem: str
) -> None:
    with pytest.raises(Exception, match="problem") as raised:
        async with in_process(providers, tmp_path, tenants=tenants):
            pass
    assert problem in str(raised.value)
    assert ACME[-43:] not in str(raised.value)
    assert "sk-literal-secret" not in str(raised.value)


async def test_a_crowd_of_tenants_at_once_gets_each_its_own_count(providers: ProviderFleet, tmp_path: Path) -> None:
    """Twenty callers of each of two tenants: no more than its own limit of each are served."""
    tenants = [_tenant("acme", ACME, requests_per_min=5), _tenant("beta", BETA, requests_per_min=10)]
    async with scripted(providers, tmp_path, "first", tenants=tenants) as (service, upstreams):
        tasks = [asyncio.create_task(_complete(service, key)) for _ in range(20) for key in (ACME, BETA)]
        await settled(tasks)
        assert sum(task.exception() is None for task in tasks) == len(upstreams["first"].bodies) == 15
