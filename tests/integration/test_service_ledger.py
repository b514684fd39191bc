"""C-05: what a request has used is in the ledger once, and is what its caller is told: attempt by attempt, and in all.

Streams that are continued, broken or left are paid for too. Prices differ from provider to provider here.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from routecast.v1 import routing_pb2

from sim.provider_server import ProviderFleet
from tests.scripted_upstreams import (
    DONE,
    STREAM_HEAD,
    USAGE,
    Upstream,
    answer,
    break_after,
    event,
    hang,
    refuse,
    scripted,
)
from tests.service_under_test import GPT4, Service, complete_request, stream_request
from tests.wire_server import Exchange

PRICES = {"first": (10.0, 100.0), "second": (20.0, 200.0), "third": (30.0, 300.0)}
PATIENT = {"reflex": {"false_alarm_every_s": 1e12}}
BODY: dict[str, Any] = {"model": GPT4, "messages": [{"role": "user", "content": "count to twelve"}], "stream": True}
ENTRIES = "SELECT provider, status, attempts, input_tokens, output_tokens, cost_usd FROM usage"


@asynccontextmanager
async def _priced(providers: ProviderFleet, tmp_path: Path) -> AsyncIterator[tuple[Service, dict[str, Upstream]]]:
    priced = [
        {"provider": name, "provider_model": "m", "input_usd_per_mtok": input_usd, "output_usd_per_mtok": output_usd}
        for name, (input_usd, output_usd) in PRICES.items()
    ]
    models = [{"id": GPT4, "endpoints": priced}]
    async with scripted(providers, tmp_path, *PRICES, policy=PATIENT, models=models) as started:
        yield started


def _price(attempt: routing_pb2.Attempt) -> float:
    input_usd, output_usd = PRICES[attempt.provider]
    return (attempt.input_tokens * input_usd + attempt.output_tokens * output_usd) / 1e6


async def test_c05_a_continued_stream_costs_the_sum_of_its_attempts(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _priced(providers, tmp_path) as (service, upstreams):
        upstreams["first"].script = break_after("one ", "two ", "three ")
        upstreams["second"].script = break_after("four ")
        upstreams["third"].script = lambda exchange: answer(exchange, "five")
        messages = [m async for m in service.stub.StreamComplete(stream_request(continue_stream=True))]
        (usage,) = [m.chunk.usage for m in messages if m.HasField("chunk") and m.chunk.HasField("usage")]
        report = messages[-1].report
        ((*who, tokens_in, tokens_out, cost_usd),) = await service.history(ENTRIES)
    first, second, third = report.attempts
    assert (first.output_tokens, second.output_tokens, third.output_tokens) == (3, 1, USAGE["completion_tokens"])
    assert [attempt.estimated for attempt in report.attempts] == [True, True, False]
    assert 1 <= first.input_tokens < second.input_tokens, "what had been said is sent along"
    assert [attempt.cost_usd for attempt in report.attempts] == [pytest.approx(_price(a)) for a in report.attempts]
    assert report.cost_usd == pytest.approx(sum(map(_price, report.attempts)))
    assert who == ["third", "ok", 3]
    assert (tokens_in, tokens_out, cost_usd) == (usage.input_tokens, usage.output_tokens, report.cost_usd)
    assert tokens_in == sum(attempt.input_tokens for attempt in report.attempts)
    assert tokens_out == 3 + 1 + USAGE["completion_tokens"]


async def test_c05_an_http_caller_who_asks_for_usage_gets_the_sum(providers: ProviderFleet, tmp_path: Path) -> None:
    """Whatever else the provider says of usage stays as it was."""
    async with _priced(providers, tmp_path) as (service, upstreams):
        details = {"cached_tokens": 4}

        async def rest(exchange: Exchange) -> None:
            usage = event(choices=[], usage=USAGE | {"prompt_tokens_details": details})
            await exchange.send(STREAM_HEAD, event("two"), event(finish="stop"), usage, DONE)

        upstreams["first"].script = break_after("one ")
        upstreams["second"].script = rest
        body = BODY | {"stream_options": {"include_usage": True}}
        asked = {"x-routecast-continue": "true"}
        async with service.http.post(f"{service.url}/v1/chat/completions", json=body, headers=asked) as response:
            raw = (await response.read()).decode()
        events = [json.loads(e[6:]) for e in raw.split("\n\n") if e.startswith("data: {")]
        told = events[-1]["usage"]
        ((*_, tokens_in, tokens_out, _),) = await service.history(ENTRIES)
    assert (told["prompt_tokens"], told["completion_tokens"]) == (tokens_in, tokens_out)
    assert (told["total_tokens"], told["prompt_tokens_details"]) == (tokens_in + tokens_out, details)
    assert tokens_out == 1 + USAGE["completion_tokens"]
    assert tokens_in > USAGE["prompt_tokens"]


async def _stay(exchange: Exchange) -> None:
    await exchange.send(STREAM_HEAD, event("one "), event("two "))
    await exchange.gone()


async def _count_and_stay(exchange: Exchange) -> None:
    """All has been said and counted; only the end is missing."""
    counted = event(choices=[], usage=USAGE)
    await exchange.send(STREAM_HEAD, event("one "), event("two "), event(finish="stop"), counted)
    await exchange.gone()


@pytest.mark.parametrize("edge", ["grpc", "http"])
@pytest.mark.parametrize(
    ("script", "seen", "output_tokens", "is_estimate"),
    [(hang, 0, 0, True), (_stay, 2, 2, True), (_count_and_stay, 4, USAGE["completion_tokens"], False)],
    ids=["before-the-answer", "in-the-middle", "at-the-end"],
)
async def test_c05_a_stream_that_is_left_is_entered_once_with_what_it_used(
    providers: ProviderFleet, tmp_path: Path, edge: str, script: Any, seen: int, output_tokens: int, is_estimate: bool
) -> None:
    async with _priced(providers, tmp_path) as (service, upstreams):
        first = upstreams["first"]
        first.script = script
        if edge == "grpc":
            await _leave_grpc(service, first, seen)
        else:
            await _leave_http(service, first, seen)
        await first.until_open(0)
        rows = await service.history(ENTRIES)
    ((provider, status, attempts, tokens_in, tokens_out, cost_usd),) = rows
    assert (provider, status, attempts, tokens_out) == ("first", "CANCELLED", 1, output_tokens)
    assert tokens_in >= 1
    assert (tokens_in == USAGE["prompt_tokens"]) is not is_estimate
    assert cost_usd == pytest.approx((tokens_in * 10 + tokens_out * 100) / 1e6)


async def _leave_grpc(service: Service, upstream: Upstream, seen: int) -> None:
    call = service.stub.StreamComplete(stream_request())
    await upstream.until_open(1)
    for _ in range(seen):
        await call.read()
    call.cancel()


async def _leave_http(service: Service, upstream: Upstream, seen: int) -> None:
    body = BODY | {"stream_options": {"include_usage": True}}
    if not seen:
        reader = service.http.post(f"{service.url}/v1/chat/completions", json=body)
        task = asyncio.ensure_future(reader.__aenter__())
        await upstream.until_open(1)
        task.cancel()
        return
    async with service.http.post(f"{service.url}/v1/chat/completions", json=body) as response:
        for _ in range(seen):
            await response.content.readuntil(b"\n\n")
        response.close()


@pytest.mark.parametrize(("key", "status", "output_tokens"), [("", "CANCELLED", 0), ("k", "ok", 5)])
async def test_c05_a_whole_answer_that_is_left_is_entered_once(
    providers: ProviderFleet, tmp_path: Path, key: str, status: str, output_tokens: int
) -> None:
    """With a key the execution goes on, and is entered as what it came to."""
    async with _priced(providers, tmp_path) as (service, upstreams):
        first, go_on = upstreams["first"], asyncio.Event()

        async def when_told(exchange: Exchange) -> None:
            told, gone = asyncio.ensure_future(go_on.wait()), asyncio.ensure_future(exchange.gone())
            await asyncio.wait([told, gone], return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if told.done():
                await answer(exchange)
            told.cancel()

        first.script = when_told
        request = complete_request()
        request.idempotency_key = key
        call = service.stub.Complete(request)
        await first.until_open(1)
        call.cancel()
        if key:
            go_on.set()
        await first.until_open(0)
        rows = await service.history(ENTRIES)
    ((provider, ended, attempts, tokens_in, tokens_out, _),) = rows
    assert (provider, ended, attempts, tokens_out) == ("first", status, 1, output_tokens)
    assert tokens_in >= 1


async def test_c05_each_of_many_streams_is_entered_once_wherever_it_is_left(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Callers race the end of their streams: some leave first, some do not, each has one entry."""
    async with _priced(providers, tmp_path) as (service, upstreams):
        upstreams["first"].script = lambda exchange: answer(exchange, *"abcdef")

        async def visit(events: int) -> None:
            call = service.stub.StreamComplete(stream_request())
            for _ in range(events):
                await call.read()
            call.cancel()

        await asyncio.gather(*(visit(n % 10) for n in range(100) if n % 10))
        await upstreams["first"].until_open(0)
        rows = await service.history(
            "SELECT request_id, count(*), max(output_tokens), any_value(status) FROM usage GROUP BY ALL"
        )
        asked = len(upstreams["first"].bodies)
    assert len(rows) == asked == 90
    for _, entries, output_tokens, status in rows:
        assert entries == 1
        assert status in ("ok", "CANCELLED")
        assert 0 <= output_tokens <= 6
    assert {status for *_, status in rows} == {"ok", "CANCELLED"}


async def test_c05_a_stream_that_breaks_is_paid_for_as_far_as_it_came(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _priced(providers, tmp_path) as (service, upstreams):
        upstreams["first"].script = break_after("one ", "two ")
        async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY) as response:
            raw = (await response.read()).decode()
        assert "stream_broken" in raw
        rows = await service.history(ENTRIES)
    ((provider, status, attempts, tokens_in, tokens_out, cost_usd),) = rows
    assert (provider, status, attempts, tokens_out) == ("first", "STREAM_BROKEN", 1, 2)
    assert cost_usd == pytest.approx((tokens_in * 10 + 200) / 1e6)


@pytest.mark.parametrize("tokens", [-3, 2**70])
@pytest.mark.parametrize("stream", [False, True])
async def test_c05_a_count_beyond_reason_is_none(
    providers: ProviderFleet, tmp_path: Path, stream: bool, tokens: int
) -> None:
    """It costs the caller no answer, and pays no tenant."""
    async with _priced(providers, tmp_path) as (service, upstreams):
        claimed = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens}

        async def claim(exchange: Exchange) -> None:
            if stream:
                counted = event(choices=[], usage=claimed)
                await exchange.send(STREAM_HEAD, event("well"), event(finish="stop"), counted, DONE)
                return
            choice = {"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}
            body = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            await exchange.respond(json.dumps(body | {"usage": claimed}).encode(), "Content-Type: application/json")

        upstreams["first"].script = claim
        if stream:
            report = [m async for m in service.stub.StreamComplete(stream_request())][-1].report
        else:
            report = (await service.complete()).routing
        assert not report.HasField("cost_usd")
        rows = await service.history("SELECT status, input_tokens, cost_usd FROM usage")
    assert rows == [("ok", None, None)]


async def test_c05_what_failed_before_an_answer_costs_nothing(providers: ProviderFleet, tmp_path: Path) -> None:
    async with _priced(providers, tmp_path) as (service, upstreams):
        for upstream in upstreams.values():
            upstream.script = refuse("503 Service Unavailable")
        async with service.http.post(f"{service.url}/v1/chat/completions", json=BODY) as response:
            assert response.status == 503
        upstreams["first"].script = answer
        upstreams["second"].script = upstreams["third"].script = answer
        await service.complete()
        rows = await service.history("SELECT status, input_tokens, output_tokens FROM usage")
    assert rows == [("ok", USAGE["prompt_tokens"], USAGE["completion_tokens"])]
