"""Hedges over real sockets: the first to answer serves, the other is cancelled at once, and the books say so.

Proves F-03, C-05 and the hedging part of F-11: a slow endpoint costs its callers a fraction of its slowness.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from routecast.v1 import routing_pb2

from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import DONE, STREAM_HEAD, USAGE, Upstream, answer, event, hang, refuse, scripted, settled
from tests.service_under_test import GPT4, Service, complete_request, details, stream_request, tried, until
from tests.wire_server import Exchange

SOON = {"hedge": {"floor_s": 0.05}}
ASKED = {"x-routecast-idempotent": "true"}
BODY = {"model": GPT4, "messages": [{"role": "user", "content": "hello"}]}


@asynccontextmanager
async def _pair(
    providers: ProviderFleet, tmp_path: Path, policy: dict[str, Any] = SOON
) -> AsyncIterator[tuple[Service, Upstream, Upstream]]:
    """A service whose primary has a normal, over whole replies and streams."""
    async with scripted(providers, tmp_path, "first", "second", policy=policy) as (service, upstreams):
        for _ in range(3):
            await service.complete()
            await _stream(service)
        yield service, upstreams["first"], upstreams["second"]


async def _stream(service: Service, **options: Any) -> Any:
    messages = [message async for message in service.stub.StreamComplete(stream_request(**options))]
    return messages[-1].report


def _kinds(report: Any) -> list[tuple[str, str, bool]]:
    return [(provider, outcome, a.hedge) for (provider, outcome), a in zip(tried(report), report.attempts, strict=True)]


@pytest.mark.parametrize("streamed", [False, True])
async def test_f03_a_hedge_answers_for_an_endpoint_that_hangs(
    providers: ProviderFleet, tmp_path: Path, streamed: bool
) -> None:
    async with _pair(providers, tmp_path) as (service, first, second):
        first.script = hang
        if streamed:
            report = await _stream(service, idempotent=True)
        else:
            report = (await service.complete(idempotent=True)).routing
        assert _kinds(report) == [("first", "CANCELLED", False), ("second", "OK", True)]
        assert not report.failed_over, "a hedge beside the first is no failover"
        assert report.provider == "second"
        await first.until_open(0)
        assert len(second.bodies) == 1
        columns = "provider, kind, outcome, error, input_tokens"
        query = f"SELECT {columns} FROM attempts WHERE request_id = '{report.request_id}' ORDER BY number"  # noqa: S608  # no value of a caller's
        outrun, hedge = await service.history(query)
    assert outrun[:4] == ("first", "live", "cancelled", "another attempt answered first")
    assert outrun[4] >= 1, "the prompt that was read is estimated, for its provider is paid for it"
    assert hedge == ("second", "hedge", "ok", "", USAGE["prompt_tokens"])


async def test_c05_a_hedged_request_has_one_entry_in_the_ledger(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _pair(providers, tmp_path) as (service, first, _):
        first.script = hang
        reply = await service.complete(idempotent=True)
        outrun, hedge = reply.routing.attempts
        query = "SELECT provider, attempts, cost_usd, input_tokens FROM usage WHERE request_id = "
        rows = await service.history(f"{query} '{reply.routing.request_id}'")
    assert (hedge.input_tokens, hedge.output_tokens, hedge.estimated) == (10, 5, False)
    assert outrun.input_tokens >= 1
    assert (outrun.output_tokens, outrun.estimated) == (0, True)
    assert rows == [("second", 2, reply.routing.cost_usd, hedge.input_tokens + outrun.input_tokens)]
    assert reply.routing.cost_usd == pytest.approx((15 + outrun.input_tokens) * 10 / 1e6), "the price of both"


async def test_c05_a_caller_who_leaves_a_race_pays_for_both_prompts_at_once(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    async with _pair(providers, tmp_path) as (service, first, second):
        first.script = second.script = hang
        asked = len(second.bodies)
        call = service.stub.Complete(complete_request(idempotent=True))
        await second.until_asked(asked + 1)
        call.cancel()
        await first.until_open(0)
        await second.until_open(0)
        rows = await service.history(
            "SELECT attempts, input_tokens, output_tokens, cost_usd FROM usage WHERE status = 'CANCELLED'"
        )
    ((attempts, input_tokens, output_tokens, cost_usd),) = rows
    assert (attempts, input_tokens % 2, output_tokens) == (2, 0, 0)
    assert input_tokens >= 2
    assert cost_usd == pytest.approx(input_tokens * 10 / 1e6)


async def test_an_http_caller_asks_with_a_header_and_sees_who_served(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _pair(providers, tmp_path) as (service, first, _):
        first.script = hang
        for stream in (False, True):
            body = BODY | {"stream": stream}
            async with service.http.post(f"{service.url}/v1/chat/completions", json=body, headers=ASKED) as response:
                assert response.status == 200
                assert response.headers["x-routecast-provider"] == "second"
                assert response.headers["x-routecast-attempts"] == "2"
                assert "well" in await response.text()
        await first.until_open(0)


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, SOON),
        ({"idempotent": False}, {"hedge": {"floor_s": 0.05, "scope": "always"}}),
        ({"idempotent": True}, {"hedge": {"floor_s": 0.05, "scope": "never"}}),
    ],
)
async def test_f04_nobody_is_hedged_who_did_not_ask_or_must_not_run_twice(
    providers: ProviderFleet, tmp_path: Path, options: dict[str, Any], policy: dict[str, Any]
) -> None:
    impatient = {"attempts": {"reply_timeout_s": 0.3, "deadline_s": 5, "reserve_s": 1}}
    async with _pair(providers, tmp_path, policy | impatient) as (service, first, second):
        first.script = hang
        asked = service.stub.Complete(complete_request(**options))
        if options.get("idempotent") is False:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await asked
            report = details(raised.value)[routing_pb2.RoutingReport]
            assert len(second.bodies) == 0
        else:
            report = (await asked).routing
        assert tried(report)[0] == ("first", "TIMEOUT")
        assert not any(attempt.hedge for attempt in report.attempts)


async def test_everybody_is_hedged_where_the_policy_says_so(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _pair(providers, tmp_path, {"hedge": {"floor_s": 0.05, "scope": "always"}}) as (service, first, _):
        first.script = hang
        assert _kinds((await service.complete()).routing)[1] == ("second", "OK", True)


async def test_the_first_may_still_win_and_the_hedge_is_cancelled(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _pair(providers, tmp_path) as (service, first, second):
        begun = asyncio.Event()

        async def late(exchange: Exchange) -> None:
            await begun.wait()
            await answer(exchange, "late ", "but first")

        async def beaten(exchange: Exchange) -> None:
            begun.set()
            await exchange.gone()

        first.script, second.script = late, beaten
        reply = await service.complete(idempotent=True)
        assert reply.choices[0].message.text == "late but first"
        assert _kinds(reply.routing) == [("first", "OK", False), ("second", "CANCELLED", True)]
        await second.until_open(0)


async def test_an_http_caller_is_told_the_decision_of_who_served(providers: ProviderFleet, tmp_path: Path) -> None:
    """Also where a hedge was decided later, and lost."""
    async with _pair(providers, tmp_path) as (service, first, second):
        begun = asyncio.Event()

        async def late(exchange: Exchange) -> None:
            await begun.wait()
            await answer(exchange)

        async def beaten(exchange: Exchange) -> None:
            begun.set()
            await exchange.gone()

        first.script, second.script = late, beaten
        async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY, headers=ASKED) as response:
            headers = response.headers
        assert (headers["x-routecast-provider"], headers["x-routecast-attempts"]) == ("first", "2")
        explained = await service.explain(headers["x-routecast-decision"])
        assert explained.chosen_endpoint_id == headers["x-routecast-endpoint"]
        await second.until_open(0)


async def test_a_hedge_that_fails_leaves_the_first_alone(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _pair(providers, tmp_path) as (service, first, second):
        refused = asyncio.Event()

        async def late(exchange: Exchange) -> None:
            await refused.wait()
            await answer(exchange)

        async def failing(exchange: Exchange) -> None:
            await refuse("503 Service Unavailable")(exchange)
            refused.set()

        first.script, second.script = late, failing
        report = (await service.complete(idempotent=True)).routing
        assert _kinds(report) == [("first", "OK", False), ("second", "SERVER_ERROR", True)]


async def test_f02_when_both_fail_the_next_endpoint_is_tried(providers: ProviderFleet, tmp_path: Path) -> None:
    async with scripted(providers, tmp_path, "first", "second", "third", policy=SOON) as (service, upstreams):
        for _ in range(3):
            await service.complete()
        both = asyncio.Event()

        async def first(exchange: Exchange) -> None:
            await both.wait()
            await refuse("500 Internal Server Error")(exchange)

        async def second(exchange: Exchange) -> None:
            both.set()
            await refuse("502 Bad Gateway")(exchange)

        upstreams["first"].script, upstreams["second"].script = first, second
        report = (await service.complete(idempotent=True)).routing
        assert {kind[:2] for kind in _kinds(report)[:2]} == {("first", "SERVER_ERROR"), ("second", "SERVER_ERROR")}
        assert _kinds(report)[2] == ("third", "OK", False)
        assert report.failed_over


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_a_caller_who_leaves_cancels_both(providers: ProviderFleet, tmp_path: Path, edge: str) -> None:
    async with _pair(providers, tmp_path) as (service, first, second):
        first.script = second.script = hang
        if edge == "grpc":
            asking = asyncio.create_task(service.complete(idempotent=True))
        else:
            posting = service.http.post(f"{service.url}/v1/chat/completions", json=BODY, headers=ASKED)
            asking = asyncio.create_task(posting.__aenter__())  # type: ignore[arg-type]
        await first.until_open(1)
        await second.until_open(1)
        asking.cancel()
        await first.until_open(0)
        await second.until_open(0)
        await settled([asking])
        rows = await service.history(
            "SELECT kind, outcome, error FROM attempts WHERE outcome = 'cancelled' ORDER BY kind"
        )
        assert rows == [("hedge", "cancelled", "the caller left"), ("live", "cancelled", "the caller left")]


async def test_a_stream_is_the_winners_alone_and_goes_on_from_there(providers: ProviderFleet, tmp_path: Path) -> None:
    """The loser's first event comes while the winner streams: none of it reaches the caller."""
    async with _pair(providers, tmp_path) as (service, first, second):
        first.script = hang
        rest = asyncio.Event()

        async def slowly(exchange: Exchange) -> None:
            await exchange.send(STREAM_HEAD, event("one "))
            await rest.wait()
            await exchange.send(event("two"), event(finish="stop"), DONE)

        second.script = slowly
        call = service.stub.StreamComplete(stream_request(idempotent=True))
        texts, report = [], None
        async for message in call:
            if message.WhichOneof("event") == "report":
                report = message.report
                continue
            texts.append("".join(delta.text for delta in message.chunk.deltas))
            await first.until_open(0)
            rest.set()
        assert "".join(texts) == "one two"
        assert _kinds(report) == [("first", "CANCELLED", False), ("second", "OK", True)]


async def test_hedges_stop_when_their_budget_is_spent(providers: ProviderFleet, tmp_path: Path) -> None:
    """With a share of next to nothing one hedge may overdraw; the next request waits for its own endpoint."""
    policy = {
        "hedge": {"floor_s": 0.05, "max_share": 1e-6},
        "attempts": {"reply_timeout_s": 0.4, "deadline_s": 5, "reserve_s": 1},
    }
    async with _pair(providers, tmp_path, policy) as (service, first, _):
        first.script = hang
        assert _kinds((await service.complete(idempotent=True)).routing)[1] == ("second", "OK", True)
        report = (await service.complete(idempotent=True)).routing
        assert _kinds(report) == [("first", "TIMEOUT", False), ("second", "OK", False)]


async def test_f12_hedged_traffic_does_not_hide_a_hanging_endpoint(providers: ProviderFleet, tmp_path: Path) -> None:
    policy = {
        "hedge": {"floor_s": 0.05, "max_share": 0.9, "max_spend_share": 0.9},
        "reflex": {"max_ejection_s": 300, "ejection_s": 300},
    }
    async with _pair(providers, tmp_path, policy) as pair:
        service, first, _ = pair
        first.script = hang

        async def is_out() -> bool:
            await service.complete(idempotent=True)
            return (await service.states())["first"] == "EJECTED"

        await until(is_out)
        assert len(first.bodies) < 6 + 30
        assert tried((await service.complete(idempotent=True)).routing) == [("second", "OK")]
