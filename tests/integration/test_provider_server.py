"""The simulated providers over real sockets: the wire as OpenAI's SDK reads it, every fault as a caller meets it."""

import asyncio
import base64
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from yarl import URL

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import Scenario, parse_scenario
from sim.wire import history_digest

SCENARIO = """
name: test
seed: 7
duration_s: 60
providers:
  - name: aurora
    region: eu-west
    zone: eu-west-a
    ttft_ms: 1
    tokens_per_s: 20000
    models:
      - {id: openai/gpt-4, provider_model_id: gpt-4-aurora, context_window: 200}
      - {id: openai/text-embedding-3-small, provider_model_id: embed-aurora, kind: embeddings, dimensions: 64}
  - name: borealis
    region: eu-west
    zone: eu-west-b
    ttft_ms: 1
    tokens_per_s: 20000
    api_key: secret
    models: [{id: openai/gpt-4, provider_model_id: gpt-4}]
  - name: dune
    region: us-east
    zone: us-east-a
    ttft_ms: 1
    tokens_per_s: 20000
    capacity: 1
    queue: 1
    requests_per_min: 5
    models: [{id: openai/gpt-4, provider_model_id: gpt-4}]
"""
MESSAGES = [
    {"role": "user", "content": "héllo"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "and?"},
]
CHAT = {"model": "gpt-4-aurora", "messages": MESSAGES}


def _scenario(faults: str = "[]") -> Scenario:
    return parse_scenario(f"{SCENARIO}\nfaults: {faults}")


@pytest.fixture
async def fleet() -> AsyncIterator[ProviderFleet]:
    async with ProviderFleet(_scenario()) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


async def _post(http: aiohttp.ClientSession, fleet: ProviderFleet, **changes: Any) -> tuple[int, dict[str, str], Any]:
    async with http.post(f"{fleet.url('aurora')}/chat/completions", json={**CHAT, **changes}) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, await response.json(content_type=None)


async def _events(response: aiohttp.ClientResponse) -> list[bytes]:
    return [line.removeprefix(b"data: ").strip() async for line in response.content if line.strip()]


async def test_the_openai_sdk_gets_an_answer_that_proves_what_history_arrived(fleet: ProviderFleet) -> None:
    """F-05: the reply carries the number of messages and their digest, and names who answered."""
    async with openai.AsyncOpenAI(base_url=fleet.url("aurora"), api_key="any", max_retries=0) as client:
        answer = await client.chat.completions.create(model="gpt-4-aurora", messages=MESSAGES)  # type: ignore[arg-type]
    content = answer.choices[0].message.content
    assert content == f"aurora received 3 messages, digest {history_digest(MESSAGES)}, last asked: and?"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert history_digest(MESSAGES[1:]) not in content


async def test_the_openai_sdk_streams_the_same_answer_with_usage_at_the_end(fleet: ProviderFleet) -> None:
    async with openai.AsyncOpenAI(base_url=fleet.url("aurora"), api_key="any", max_retries=0) as client:
        stream = await client.chat.completions.create(  # type: ignore[call-overload]  # plain dicts, as callers send
            model="gpt-4-aurora",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        whole = await client.chat.completions.create(model="gpt-4-aurora", messages=MESSAGES)  # type: ignore[arg-type]
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert (chunks[-2].choices[0].finish_reason, chunks[-1].choices, chunks[-1].usage) == ("stop", [], whole.usage)


async def test_embeddings_agree_between_float_and_base64(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    async with openai.AsyncOpenAI(base_url=fleet.url("aurora"), api_key="any", max_retries=0) as client:
        by_sdk = await client.embeddings.create(model="embed-aurora", input=["one", "two"])
    asked = {"model": "embed-aurora", "input": ["one", "two"], "encoding_format": "float"}
    async with http.post(f"{fleet.url('aurora')}/embeddings", json=asked) as response:
        floats = (await response.json())["data"]
    async with http.post(f"{fleet.url('aurora')}/embeddings", json={**asked, "encoding_format": "base64"}) as response:
        packed = base64.b64decode((await response.json())["data"][1]["embedding"])
    assert by_sdk.data[0].embedding == pytest.approx(floats[0]["embedding"])
    assert list(struct.unpack("<64f", packed)) == pytest.approx(floats[1]["embedding"])
    assert floats[0]["embedding"] != floats[1]["embedding"]
    assert sum(x * x for x in floats[0]["embedding"]) == pytest.approx(1, abs=1e-5)


async def test_models_are_listed_under_the_providers_own_names(fleet: ProviderFleet) -> None:
    async with openai.AsyncOpenAI(base_url=fleet.url("aurora"), api_key="any", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["gpt-4-aurora", "embed-aurora"]


async def test_what_arrived_is_kept_byte_for_byte(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    """F-17: a test can prove that body, headers and path reached the provider unchanged."""
    body = b'{ "messages":[{"role":"user","content":"\\u00e9"}],"x_new": {"b":1.50,"a":[ ]}, "model":"gpt-4-aurora"}'
    url = URL(f"{fleet.url('aurora')}/chat/completions?trace=%7E1", encoded=True)
    async with http.post(url, data=body, headers={"X-Odd-CASE": "kept", "Content-Type": "application/json"}) as answer:
        assert answer.status == 200
    (received,) = fleet.requests("aurora")
    assert (received.method, received.path, received.body) == ("POST", "/v1/chat/completions?trace=%7E1", body)
    assert ("X-Odd-CASE", "kept") in received.headers


@pytest.mark.parametrize(
    ("changes", "status", "param", "code"),
    [
        ({"model": "gpt-9"}, 404, "model", "model_not_found"),
        ({"model": "embed-aurora"}, 404, "model", None),
        ({"model": None}, 400, "model", None),
        ({"messages": []}, 400, "messages", None),
        ({"messages": [{"content": "x"}]}, 400, "messages[0]", None),
        ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content", None),
        ({"messages": [{"role": "user", "content": "x" * 900}]}, 400, "messages", "context_length_exceeded"),
        ({"stream": "yes"}, 400, "stream", None),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", None),
        ({"max_tokens": 0}, 400, "max_tokens", None),
    ],
)
async def test_a_bad_request_gets_openais_error_body(
    fleet: ProviderFleet,
    http: aiohttp.ClientSession,
    changes: dict[str, Any],
    status: int,
    param: str,
    code: str | None,
) -> None:
    got, _, payload = await _post(http, fleet, **changes)
    assert (got, payload["error"]["param"], payload["error"]["code"]) == (status, param, code)
    assert payload["error"]["type"] == "invalid_request_error"
    assert fleet.stats("aurora").outcomes == {"client_error": 1}


async def test_broken_json_and_unknown_paths_are_client_errors(
    fleet: ProviderFleet, http: aiohttp.ClientSession
) -> None:
    async with http.post(f"{fleet.url('aurora')}/chat/completions", data=b"{") as response:
        assert response.status == 400
    async with http.get(f"{fleet.url('aurora')}/nothing") as response:
        assert (response.status, "Invalid URL" in await response.text()) == (404, True)


async def test_tokens_can_be_bounded_from_both_sides(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    _, _, short = await _post(http, fleet, max_tokens=3)
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (3, "length")
    _, _, long = await _post(http, fleet, min_tokens=500)
    assert (long["usage"]["completion_tokens"], long["choices"][0]["finish_reason"]) == (500, "stop")


async def test_a_key_is_asked_for_where_one_is_configured(fleet: ProviderFleet) -> None:
    async with openai.AsyncOpenAI(base_url=fleet.url("borealis"), api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as refusal:
            await client.models.list()
        assert refusal.value.code == "invalid_api_key"
    async with openai.AsyncOpenAI(base_url=fleet.url("borealis"), api_key="secret", max_retries=0) as client:
        assert (await client.models.list()).data
    assert fleet.stats("borealis").outcomes == {"auth_error": 1, "ok": 1}


async def test_the_announced_rate_limit_is_kept(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    remaining = []
    for _ in range(5):
        async with http.get(f"{fleet.url('dune')}/models") as response:
            remaining.append(response.headers["x-ratelimit-remaining-requests"])
            assert (response.headers["x-ratelimit-limit-requests"], response.status) == ("5", 200)
    assert remaining == ["4", "3", "2", "1", "0"]
    async with http.get(f"{fleet.url('dune')}/models") as response:
        assert response.status == 429
        assert 0 < int(response.headers["Retry-After"]) <= 60


async def test_requests_beyond_capacity_wait_in_a_bounded_queue(
    fleet: ProviderFleet, http: aiohttp.ClientSession
) -> None:
    await fleet.inject(Fault(kind=FaultKind.LATENCY_RAMP, provider="dune", at_s=0, ramp_s=1e-6, peak=200.0))

    async def ask() -> int:
        body = {"model": "gpt-4", "messages": MESSAGES}
        async with http.post(f"{fleet.url('dune')}/chat/completions", json=body) as response:
            await response.read()
            return response.status

    assert sorted(await asyncio.gather(ask(), ask(), ask())) == [200, 200, 503]


async def test_429_carries_when_to_come_back(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", retry_after_s=1.5))
    status, headers, payload = await _post(http, fleet)
    assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "2", "1500")
    assert (headers["x-ratelimit-remaining-requests"], payload["error"]["code"]) == ("0", "rate_limit_exceeded")
    await fleet.clear()
    assert (await _post(http, fleet))[0] == 200
    assert fleet.stats("aurora").outcomes == {"rate_limited": 1, "ok": 1}


async def test_a_token_quota_runs_out(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.RATE_LIMIT, provider="aurora", quota_tokens=60, window_s=600.0))
    statuses: list[int] = []
    headers: dict[str, str] = {}
    for _ in range(4):
        status, headers, _ = await _post(http, fleet)
        statuses.append(status)
    assert (statuses[0], statuses[-1]) == (200, 429)
    assert 590 <= int(headers["retry-after"]) <= 600
    assert headers["x-ratelimit-limit-tokens"] == "60"


async def test_server_errors_carry_their_status(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora", status=529))
    status, headers, payload = await _post(http, fleet)
    assert (status, payload["error"]["type"]) == (529, "server_error")
    assert headers["x-request-id"].startswith("req_aurora_")


async def test_an_error_rate_strikes_its_share_and_repeats_from_the_seed(http: aiohttp.ClientSession) -> None:
    async def statuses() -> list[int]:
        async with ProviderFleet(_scenario()) as fleet:
            await fleet.inject(Fault(kind=FaultKind.ERROR_RATE, provider="aurora", probability=0.5))
            return [(await _post(http, fleet))[0] for _ in range(40)]

    first = await statuses()
    assert 8 <= first.count(503) <= 32
    assert await statuses() == first


async def test_a_hang_lasts_until_the_caller_leaves(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
    asking = asyncio.create_task(_post(http, fleet))
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 1)
    assert fleet.stats("aurora").outcomes == {"hang": 1}
    asking.cancel()
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 0)


async def test_a_reset_is_a_tcp_reset(fleet: ProviderFleet) -> None:
    await fleet.inject(Fault(kind=FaultKind.RESET, provider="aurora"))
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.port("aurora"))
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: aurora\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    assert fleet.stats("aurora").outcomes == {"reset": 1}


@pytest.mark.parametrize(
    "fault",
    [Fault(kind=FaultKind.REFUSE, provider="aurora"), Fault(kind=FaultKind.REGION_OUTAGE, region="eu-west")],
    ids=lambda fault: fault.kind,
)
async def test_a_refusing_provider_drops_its_connections_and_accepts_none(fleet: ProviderFleet, fault: Fault) -> None:
    port = fleet.port("aurora")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await fleet.until(lambda: fleet.stats("aurora").connections == 1)
    await fleet.inject(fault)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert not fleet.stats("dune").refusing
    await fleet.clear()
    _, again = await asyncio.open_connection("127.0.0.1", port)
    again.close()


async def test_listeners_follow_the_scenarios_clock(http: aiohttp.ClientSession) -> None:
    outage = "[{kind: region_outage, region: eu-west, at_s: 0.1, for_s: 1}]"
    async with ProviderFleet(_scenario(outage)) as fleet:
        before_s = fleet.clock_s
        assert before_s is None
        assert (await _post(http, fleet))[0] == 200
        await fleet.start_clock()
        await fleet.until(lambda: fleet.stats("aurora").refusing and fleet.stats("borealis").refusing)
        await fleet.until(lambda: not fleet.stats("aurora").refusing and not fleet.stats("borealis").refusing)
        assert fleet.clock_s is not None
        assert fleet.clock_s >= 1.1
        assert (await _post(http, fleet))[0] == 200
        with pytest.raises(RuntimeError):
            await fleet.start_clock()


async def test_a_truncated_stream_ends_without_finish_reason_or_done(
    fleet: ProviderFleet, http: aiohttp.ClientSession
) -> None:
    await fleet.inject(Fault(kind=FaultKind.TRUNCATE, provider="aurora"))
    async with http.post(f"{fleet.url('aurora')}/chat/completions", json={**CHAT, "stream": True}) as response:
        events = await _events(response)
    assert b"[DONE]" not in events
    assert len(events) > 1
    assert all(json.loads(event)["choices"][0]["finish_reason"] is None for event in events)


async def test_a_truncated_body_is_shorter_than_announced(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.TRUNCATE, provider="aurora"))
    with pytest.raises(aiohttp.ClientPayloadError):
        await _post(http, fleet)
    assert fleet.stats("aurora").outcomes == {"truncate": 1}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stall_stops_half_way_and_keeps_the_connection(
    fleet: ProviderFleet, http: aiohttp.ClientSession, stream: bool
) -> None:
    await fleet.inject(Fault(kind=FaultKind.STALL, provider="aurora"))
    async with http.post(f"{fleet.url('aurora')}/chat/completions", json={**CHAT, "stream": stream}) as response:
        assert await response.content.readany()
        await fleet.until(lambda: fleet.stats("aurora").outcomes == {"stall": 1})
        assert fleet.stats("aurora").in_flight == 1
        assert not response.content.at_eof()
    await fleet.until(lambda: fleet.stats("aurora").in_flight == 0)


async def test_malformed_answers_are_200_with_invalid_json(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.MALFORMED, provider="aurora"))
    async with http.post(f"{fleet.url('aurora')}/chat/completions", json=CHAT) as response:
        body = await response.read()
        assert response.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    async with http.post(f"{fleet.url('aurora')}/chat/completions", json={**CHAT, "stream": True}) as response:
        events = await _events(response)
    assert events[-1] == b"[DONE]"
    with pytest.raises(json.JSONDecodeError):
        [json.loads(event) for event in events[:-1]]


async def test_a_crawl_slows_the_tokens_down(fleet: ProviderFleet, http: aiohttp.ClientSession) -> None:
    await fleet.inject(Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=1e-6))
    async with http.post(f"{fleet.url('aurora')}/chat/completions", json={**CHAT, "stream": True}) as response:
        first = await response.content.readline()
        assert b'"role":"assistant"' in first
    await fleet.until(lambda: fleet.stats("aurora").outcomes == {"cancelled": 1})


async def test_leaving_does_not_wait_for_requests_that_hang(http: aiohttp.ClientSession) -> None:
    async with ProviderFleet(_scenario()) as fleet:
        await fleet.inject(Fault(kind=FaultKind.HANG, provider="aurora"), Fault(kind=FaultKind.STALL, provider="dune"))
        asking = asyncio.create_task(_post(http, fleet))
        await fleet.until(lambda: fleet.stats("aurora").in_flight == 1)
        port = fleet.port("aurora")
    with pytest.raises(aiohttp.ClientError):
        await asking
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_taken_port_is_said_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as freed:
        ports = {"aurora": freed.getsockname()[1], "borealis": taken.getsockname()[1]}
        freed.close()
        text = SCENARIO
        for name, port in ports.items():
            text = text.replace(f"name: {name}", f"name: {name}\n    port: {port}")
        with pytest.raises(OSError, match="in use"):
            await ProviderFleet(parse_scenario(text)).__aenter__()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", ports["aurora"])


async def test_the_process_announces_its_ports_obeys_its_controls_and_leaves_on_sigterm(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    scenario, ports_file = tmp_path / "scenario.yaml", tmp_path / "ports.json"
    scenario.write_text(SCENARIO + "faults: [{kind: server_error, provider: aurora}]", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sim.provider_server", "--scenario", scenario, "--ports-file", ports_file),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        ready = json.loads(line)
        assert ports_file.read_bytes() == line
        control = f"http://127.0.0.1:{ready['control_port']}"
        chat = f"http://127.0.0.1:{ready['ports']['aurora']}/v1/chat/completions"

        async def ask() -> int:
            async with http.post(chat, json=CHAT) as response:
                return response.status

        assert await ask() == 200
        async with http.get(f"{control}/clock") as response:
            assert await response.json() == {"scenario": "test", "t_s": None, "duration_s": 60.0}
        async with http.post(f"{control}/start") as response:
            assert (await response.json())["t_s"] >= 0
        async with http.post(f"{control}/start") as response:
            assert response.status == 409
        assert await ask() == 503
        async with http.delete(f"{control}/faults") as response:
            assert response.status == 204
        assert await ask() == 200
        async with http.post(f"{control}/faults", json={"kind": "refuse", "provider": "aurora"}) as response:
            assert response.status == 204
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask()
        for wrong in ({"kind": "hang", "provider": "aurora", "for": 3}, {"kind": "hang", "provider": "mars"}):
            async with http.post(f"{control}/faults", json=wrong) as response:
                assert response.status == 400
        async with http.get(f"{control}/stats") as response:
            aurora = (await response.json())["aurora"]
        assert (aurora["outcomes"], aurora["refusing"]) == ({"ok": 2, "server_error": 1}, True)
        assert json.loads(base64.b64decode(aurora["last_request"]["body_base64"])) == CHAT
        async with http.post(f"{control}/faults", json={"kind": "hang", "provider": "dune"}) as response:
            assert response.status == 204
        hanging = asyncio.create_task(http.get(f"http://127.0.0.1:{ready['ports']['dune']}/v1/models"))
        os.kill(process.pid, signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0
        with pytest.raises(aiohttp.ClientError):
            await hanging
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_process_refuses_a_bad_scenario_with_status_2(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(SCENARIO + "faults: [{kind: hang}]", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sim.provider_server", "--scenario", scenario),
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    _, said = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert b"faults[0]: expected a target" in said
