"""Idempotency keys (F-04) and the usage ledger (C-05): a provider is called once per key, everybody gets that one
answer, and it is billed once. The providers' own counts are the judge.
"""

import asyncio
import functools
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from routecast.v1 import chat_pb2, router_pb2, routing_pb2

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import (
    DEADLINE_S,
    EMBED,
    GPT4,
    Client,
    Service,
    as_process,
    config_for,
    details,
    in_process,
    read_history,
    tried,
    until,
    user,
    write_config,
)
from tests.wire_server import Exchange, WireServer, head

SLOW = Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.002)
BODY: dict[str, Any] = {"model": GPT4, "messages": [{"role": "user", "content": "hello"}]}
REPLAYED = "x-routecast-replayed"


def _calls(providers: ProviderFleet) -> int:
    return sum(providers.stats(name).total for name in providers.names)


def _request(text: str, key: str, **options: Any) -> router_pb2.CompleteRequest:
    chat = chat_pb2.ChatRequest(model=GPT4, messages=[user(text)])
    routing = routing_pb2.RoutingOptions(**options)
    return router_pb2.CompleteRequest(chat=chat, routing=routing, idempotency_key=key)


def _stream(text: str, key: str) -> router_pb2.StreamCompleteRequest:
    chat = chat_pb2.ChatRequest(model=GPT4, messages=[user(text)])
    return router_pb2.StreamCompleteRequest(chat=chat, idempotency_key=key)


def _post(client: Client, body: dict[str, Any], key: str, path: str = "chat/completions", **headers: str) -> Any:
    named = {"idempotency-key": key} | {name.replace("_", "-"): value for name, value in headers.items()}
    return client.http.post(f"{client.url}/v1/{path}", json=body, headers=named)


async def _answer(response: aiohttp.ClientResponse) -> tuple[int, bytes, bool]:
    return response.status, await response.read(), response.headers.get(REPLAYED) == "true"


async def _posted(client: Client, body: dict[str, Any], key: str, **headers: str) -> tuple[int, bytes, bool]:
    async with _post(client, body, key, **headers) as response:
        return await _answer(response)


async def test_f04_a_duplicate_gets_the_status_and_body_of_the_first(
    service: Service, providers: ProviderFleet
) -> None:
    first, second = await _posted(service, BODY, "k"), await _posted(service, BODY, "k")
    assert first[0] == 200
    assert (first[2], second[2]) == (False, True)
    assert second[:2] == first[:2]
    assert _calls(providers) == 1


async def test_f04_a_replay_says_what_it_is_and_tells_no_old_limits(service: Service, providers: ProviderFleet) -> None:
    async with _post(service, BODY, "k", x_request_id="first") as response:
        assert "x-ratelimit-remaining-requests" in response.headers
        assert "x-routecast-cost-usd" in response.headers
    async with _post(service, BODY, "k", x_request_id="second") as response:
        assert response.headers["x-request-id"] == "second"
        assert response.headers["x-routecast-endpoint"] == f"aurora:{GPT4}"
        assert "x-ratelimit-remaining-requests" not in response.headers
        assert "x-routecast-cost-usd" not in response.headers


async def test_f04_over_grpc_the_report_is_that_of_the_first(service: Service, providers: ProviderFleet) -> None:
    first, second = [await service.stub.Complete(_request("hi", "k"), timeout=DEADLINE_S) for _ in range(2)]
    assert (first.routing.replayed, second.routing.replayed) == (False, True)
    second.routing.replayed = False
    assert second == first
    embed = router_pb2.EmbedRequest(model=EMBED, inputs=["a", "b"], idempotency_key="e")
    vectors = [await service.stub.Embed(embed, timeout=DEADLINE_S) for _ in range(2)]
    assert vectors[0].embeddings == vectors[1].embeddings
    assert vectors[1].routing.replayed
    assert _calls(providers) == 2


async def test_f04_a_stream_is_replayed_chunk_by_chunk(service: Service, providers: ProviderFleet) -> None:
    body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
    first, second = await _posted(service, body, "k"), await _posted(service, body, "k")
    assert first[1].endswith(b"data: [DONE]\n\n")
    assert second == (200, first[1], True)
    streams = [[m async for m in service.stub.StreamComplete(_stream("hi", "s"))] for _ in range(2)]
    assert [m.chunk for m in streams[0][:-1]] == [m.chunk for m in streams[1][:-1]]
    assert [m[-1].report.replayed for m in streams] == [False, True]
    assert _calls(providers) == 2


async def test_f04_fifty_duplicates_at_once_are_one_call(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(SLOW)
    answers = await asyncio.gather(*(_posted(service, BODY, "k") for _ in range(50)))
    assert {answer[:2] for answer in answers} == {answers[0][:2]}
    assert [answer[2] for answer in answers].count(False) == 1
    assert _calls(providers) == 1
    assert await service.history("SELECT count(*), sum(output_tokens) > 0 FROM usage") == [(1, True)]


async def test_f04_fifty_joiners_see_the_stream_live_and_from_its_beginning(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """The provider sends its second event only when all of them have had the first."""
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": {"content": text}, "finish_reason": None} for text in ("one", "two")
    ]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    events = [b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices]
    everybody, calls = asyncio.Barrier(52), 0

    async def script(exchange: Exchange) -> None:
        nonlocal calls
        calls += 1
        await exchange.send(head("Content-Type: text/event-stream"), events[0])
        await everybody.wait()
        await exchange.send(*events[1:], b"data: [DONE]\n\n")
        exchange.close()

    async with WireServer(script) as server:
        named = [{"name": "only", "base_url": server.url}]
        models = [{"id": GPT4, "endpoints": [{"provider": "only", "provider_model": "m"}]}]
        async with in_process(providers, tmp_path, providers=named, models=models) as service:

            async def caller() -> tuple[bytes, bool]:
                async with _post(service, {**BODY, "stream": True}, "k") as response:
                    first = await response.content.readuntil(b"\n\n")
                    await everybody.wait()
                    return first + await response.read(), response.headers.get(REPLAYED) == "true"

            answers = await asyncio.gather(*(caller() for _ in range(51)))
    assert {whole for whole, _ in answers} == {b"".join(events) + b"data: [DONE]\n\n"}
    assert [replayed for _, replayed in answers].count(False) == 1
    assert calls == 1


async def test_f04_the_first_caller_may_leave_while_another_stays(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(SLOW)
    leader = service.stub.StreamComplete(_stream("hi", "k"))
    assert (await anext(aiter(leader))).WhichOneof("event") == "chunk"
    joiner = aiter(service.stub.StreamComplete(_stream("hi", "k")))
    assert (await anext(joiner)).WhichOneof("event") == "chunk"
    leader.cancel()
    rest = [message async for message in joiner]
    assert rest[-1].report.replayed
    assert providers.stats("aurora").outcomes == {"ok": 1}
    rows = await service.history("SELECT status, attempts FROM requests ORDER BY attempts")
    assert rows == [("ok", 0), ("ok", 1)]


async def test_f04_an_answer_waits_for_a_caller_who_left(service: Service, providers: ProviderFleet) -> None:
    await providers.inject(SLOW)
    lost = asyncio.create_task(_posted(service, BODY, "k"))
    await providers.until(lambda: providers.stats("aurora").in_flight == 1)
    lost.cancel()
    status, _, replayed = await _posted(service, BODY, "k")
    assert (status, replayed) == (200, True)
    assert _calls(providers) == 1


async def test_f04_an_answer_waits_for_a_caller_whose_deadline_passed(
    service: Service, providers: ProviderFleet
) -> None:
    """The provider takes longer than the caller waits: without the key each retry would pay again and never succeed."""
    await providers.inject(Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.0005))
    request = _request("hi", "k", idempotent=False)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.Complete(request, timeout=0.3)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    reply = await service.stub.Complete(request, timeout=DEADLINE_S)
    assert reply.routing.replayed
    assert providers.stats("aurora").outcomes == {"ok": 1}
    assert _calls(providers) == 1


async def test_f04_the_retries_of_an_unmodified_sdk_are_one_call(service: Service, providers: ProviderFleet) -> None:
    """The official SDK gives up waiting and tries again by itself, with the same headers."""
    await providers.inject(Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.0005))
    sdk = service.sdk.with_options(max_retries=10, timeout=0.4)
    raw = await sdk.chat.completions.with_raw_response.create(
        model=GPT4, messages=[{"role": "user", "content": "hi"}], extra_headers={"Idempotency-Key": "k"}
    )
    assert raw.headers[REPLAYED] == "true"
    assert raw.parse().choices[0].message.content
    assert providers.stats("aurora").outcomes == {"ok": 1}
    counted = "SELECT (SELECT count(*) FROM usage), count(*) > 0 FROM requests WHERE method = 'replay'"
    assert await service.history(counted) == [(1, True)]


async def test_f03_a_key_does_not_cost_a_caller_in_a_hurry_his_failover(
    service: Service, providers: ProviderFleet
) -> None:
    """Attempts are planned within what the caller waits for, although the execution may outlive him."""
    await providers.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
    reply = await service.stub.Complete(_request("hi", "k"), timeout=2.0)
    assert tried(reply.routing) == [("aurora", "TIMEOUT"), ("borealis", "OK")]


async def test_f04_another_body_under_the_same_key_is_refused(service: Service, providers: ProviderFleet) -> None:
    other = {**BODY, "temperature": 0.5}
    await providers.inject(SLOW)
    under_way = asyncio.create_task(_posted(service, BODY, "k"))
    await providers.until(lambda: providers.stats("aurora").in_flight == 1)
    for _ in ("under way", "later"):
        status, body, _ = await _posted(service, other, "k")
        assert status == 422
        assert json.loads(body)["error"]["code"] == "idempotency_key_reused"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.stub.Complete(_request("something else", "k"), timeout=DEADLINE_S)
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert details(raised.value)[ErrorInfo].reason == "IDEMPOTENCY_KEY_REUSED"
        assert (await under_way)[0] == 200
    assert _calls(providers) == 1


async def test_f04_a_failure_that_served_nobody_leaves_the_key_free(service: Service, providers: ProviderFleet) -> None:
    for kind, code in ((FaultKind.RATE_LIMIT, 429), (FaultKind.SERVER_ERROR, 503), (FaultKind.REFUSE, 503)):
        await providers.inject(*(Fault(kind=kind, region=region) for region in ("eu-west", "us-east")))
        assert (await _posted(service, BODY, kind.value))[0] == code
        await providers.clear()
        answers: list[tuple[int, bytes, bool]] = []

        async def is_served(key: str, answers: list[tuple[int, bytes, bool]] = answers) -> bool:
            answers.append(await _posted(service, BODY, key))
            return answers[-1][0] == 200

        await until(functools.partial(is_served, kind.value))
        assert not any(replayed for _, _, replayed in answers)


async def test_f04_a_request_that_must_not_run_twice_keeps_its_failure(
    service: Service, providers: ProviderFleet
) -> None:
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
    failures = []
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.stub.Complete(_request("hi", "k", idempotent=False), timeout=DEADLINE_S)
        failures.append((raised.value.code(), raised.value.details(), details(raised.value)[ErrorInfo].reason))
        await providers.clear()
    assert failures[0] == failures[1]
    assert failures[0][0] is grpc.StatusCode.UNAVAILABLE
    assert _calls(providers) == 1


async def test_f04_a_broken_stream_that_must_not_run_twice_breaks_again_alike(
    service: Service, providers: ProviderFleet
) -> None:
    await providers.inject(Fault(kind=FaultKind.TRUNCATE, provider="aurora"))
    body = {**BODY, "stream": True}
    first, second = [await _posted(service, body, "k", x_routecast_idempotent="false") for _ in range(2)]
    assert b'"stream_broken"' in first[1]
    assert b"[DONE]" not in first[1]
    assert second[2]
    # Everything that was sent is sent again; only how long to wait is left out.
    assert second[1] == first[1]
    assert _calls(providers) == 1


async def test_f04_a_result_beyond_the_bound_is_neither_kept_nor_executed_again(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    async with in_process(providers, tmp_path, idempotency={"max_result_bytes": 1024}) as service:
        for stream in (False, True):
            body = {**BODY, "min_tokens": 2000, "stream": stream}
            assert (await _posted(service, body, f"k{stream}"))[0] == 200
            async with _post(service, body, f"k{stream}") as response:
                assert response.status == 409
                assert response.headers["x-should-retry"] == "false"
                assert (await response.json())["error"]["code"] == "idempotency_result_too_large"
    assert _calls(providers) == 2


@pytest.mark.parametrize("key", ["", " ", "two words", "x" * 256, "ümlaut"])
async def test_f04_a_key_that_cannot_be_one_is_named(service: Service, providers: ProviderFleet, key: str) -> None:
    if key:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.stub.Complete(_request("hi", key), timeout=DEADLINE_S)
        (violation,) = details(raised.value)[BadRequest].field_violations
        assert violation.field == "idempotency_key"
    if key.strip() or not key:
        assert (await _posted(service, BODY, key))[0] == 400
    assert _calls(providers) == 0


async def test_f04_the_same_key_with_and_without_a_session_are_two_requests(
    service: Service, providers: ProviderFleet
) -> None:
    """A turn of a conversation asks something else than the same words without it; replays leave the history alone."""
    assert (await _posted(service, BODY, "k", x_routecast_session="s"))[0] == 200
    assert (await _posted(service, BODY, "k"))[0] == 422
    assert (await _posted(service, BODY, "k", x_routecast_session="s"))[2]
    await service.complete(user("more"), session_id="s")
    assert len(json.loads(providers.requests("aurora")[-1].body)["messages"]) == 3


async def test_f04_results_survive_the_death_of_the_process(providers: ProviderFleet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    stream = {**BODY, "stream": True}
    async with as_process(config) as process:
        whole, chunks = await _posted(process, BODY, "whole"), await _posted(process, stream, "stream")
        await process.end(signal.SIGKILL)
    async with as_process(config) as process:
        assert await _posted(process, BODY, "whole") == (200, whole[1], True)
        assert await _posted(process, stream, "stream") == (200, chunks[1], True)
        assert (await _posted(process, stream, "whole"))[0] == 422
        assert await process.end() == 0
    assert _calls(providers) == 2
    rows = read_history(tmp_path / "data", "SELECT operation, endpoint, cost_usd > 0 FROM usage ORDER BY time")
    assert rows == [("chat", f"aurora:{GPT4}", True)] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_f04_what_a_crash_cut_off_is_not_executed_again(
    providers: ProviderFleet, tmp_path: Path, *, stream: bool
) -> None:
    """The mark is on the disk before the request leaves, so after a crash the answer is an error that says so."""
    await providers.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    body = {**BODY, "stream": stream}
    async with as_process(config) as process:
        cut_off = asyncio.create_task(_posted(process, body, "k"))
        await providers.until(lambda: providers.stats("aurora").in_flight == 1)
        await process.end(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await cut_off
    await providers.clear()
    async with as_process(config) as process:
        status, answer, _ = await _posted(process, body, "k")
        assert (status, json.loads(answer)["error"]["code"]) == (409, "idempotency_outcome_unknown")
        assert (await _posted(process, body, "another"))[0] == 200
    assert _calls(providers) == 2


async def test_f04_an_execution_nobody_waits_for_finishes_while_the_service_drains(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    await providers.inject(SLOW)
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    async with as_process(config) as process:
        lost = asyncio.create_task(_posted(process, BODY, "k"))
        await providers.until(lambda: providers.stats("aurora").in_flight == 1)
        lost.cancel()
        assert await process.end() == 0
    async with as_process(config) as process:
        status, _, replayed = await _posted(process, BODY, "k")
        assert (status, replayed) == (200, True)
    assert _calls(providers) == 1


async def test_c05_a_served_request_is_one_entry_however_it_came_about(
    service: Service, providers: ProviderFleet
) -> None:
    await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
    reply = await service.stub.Complete(_request("hi", "k"), timeout=DEADLINE_S)
    await service.stub.Complete(_request("hi", "k"), timeout=DEADLINE_S)
    assert len(reply.routing.attempts) == 2
    await providers.clear()
    rows = await service.history(
        "SELECT endpoint, attempts, input_usd_per_mtok, output_usd_per_mtok, input_tokens, output_tokens, cost_usd"
        " FROM usage"
    )
    usage, report = reply.usage, reply.routing
    assert rows == [
        (report.endpoint_id, 2, 20.0, 40.0, usage.input_tokens, usage.output_tokens, pytest.approx(report.cost_usd))
    ]


async def test_c05_no_acknowledged_entry_is_lost_or_doubled_by_crashes(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    """Three lives, each killed at once after its answers; the last one ends in order and brings everything home."""
    config = write_config(
        tmp_path / "routecast.yaml",
        config_for(providers, tmp_path / "data", usage={"acknowledge": "stored"}, history={"flush_s": 0.01}),
    )
    for life in range(4):
        async with as_process(config) as process:
            await asyncio.gather(*(process.complete(user(f"{life} {n}")) for n in range(20)))
            assert await process.end(signal.SIGKILL if life < 3 else signal.SIGTERM) in (0, -signal.SIGKILL)
    rows = read_history(tmp_path / "data", "SELECT count(*), count(DISTINCT entry_id) FROM usage")
    assert rows == [(80, 80)]
