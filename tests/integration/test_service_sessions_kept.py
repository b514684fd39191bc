"""Sessions outlive the process (F-05), fit the window of whoever serves them (F-14), and are sealed on the disk."""

import base64
import json
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from routecast.v1 import routing_pb2

from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from tests.service_under_test import (
    GPT4,
    Client,
    Tree,
    as_process,
    config_for,
    details,
    in_process,
    run_to_end,
    stream_request,
    user,
    write_config,
)

SECRET = "the treasure lies under the third oak"
DROP: dict[str, Any] = {"truncation": routing_pb2.TRUNCATION_DROP_OLDEST}


def _sent(providers: ProviderFleet, name: str) -> list[Any]:
    found: list[Any] = json.loads(providers.requests(name)[-1].body)["messages"]
    return found


def _windows(providers: ProviderFleet, data_dir: Path, *windows: int | None, **sections: Any) -> Tree:
    """A configuration of the chat model whose endpoints have these windows, in order."""
    tree = config_for(providers, data_dir, **sections)
    for endpoint, window in zip(tree["models"][0]["endpoints"], windows, strict=True):
        endpoint["context_window_tokens"] = window
    return tree


async def _post(client: Client, messages: list[Any], **headers: str) -> tuple[aiohttp.ClientResponse, Any]:
    named = {f"x-routecast-{name}": value for name, value in headers.items()}
    body = {"model": GPT4, "messages": messages}
    async with client.http.post(f"{client.url}/v1/chat/completions", json=body, headers=named) as response:
        return response, await response.json()


async def test_f05_a_conversation_survives_the_death_of_the_process(providers: ProviderFleet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    async with as_process(config) as process:
        await process.complete(user("my name is Ada"), session_id="s")
        assert [m async for m in process.stub.StreamComplete(stream_request(user("and I like tea"), session_id="s"))]
        before = _sent(providers, "aurora")
        await process.end(signal.SIGKILL)
    await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
    async with as_process(config) as process:
        reply = await process.complete(user("who am I?"), session_id="s")
        assert reply.routing.provider == "borealis"
    after = _sent(providers, "borealis")
    assert after[:3] == before
    assert [message["role"] for message in after] == ["user", "assistant"] * 2 + ["user"]


async def test_f05_affinity_survives_the_death_of_the_process(providers: ProviderFleet, tmp_path: Path) -> None:
    """The endpoint that served the conversation last, whose prompt cache is warm, is preferred after a restart too."""
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    async with as_process(config) as process:
        first = await process.complete(user("hi"), session_id="s", preferred_provider="cirrus")
        assert first.routing.provider == "cirrus"
        await process.end(signal.SIGKILL)
    async with as_process(config) as process:
        assert (await process.complete(user("more"), session_id="s")).routing.provider == "cirrus"
        assert (await process.complete(user("more"), session_id="other")).routing.provider == "aurora"


async def test_f05_a_conversation_that_left_memory_is_read_again(providers: ProviderFleet, tmp_path: Path) -> None:
    async with in_process(providers, tmp_path, sessions={"cache_bytes": 0}) as service:
        for turn in range(3):
            for name in ("left", "right"):
                await service.complete(user(f"{name} {turn}"), session_id=name)
        sent = _sent(providers, "aurora")
    assert [message["content"] for message in sent if message["role"] == "user"] == ["right 0", "right 1", "right 2"]
    assert len(sent) == 5


async def test_f05_the_disk_forgets_the_longest_unused_first(providers: ProviderFleet, tmp_path: Path) -> None:
    bounds = {"cache_bytes": 0, "max_total_bytes": 2048}
    async with in_process(providers, tmp_path, sessions=bounds) as service:
        for name in ("first", "second"):
            await service.complete(user(name + "x" * 1000), session_id=name)
        await service.complete(user("again"), session_id="second")
        assert len(_sent(providers, "aurora")) == 3
        await service.complete(user("again"), session_id="first")
        assert len(_sent(providers, "aurora")) == 1


async def test_f14_without_leave_a_conversation_too_long_for_the_fallback_is_refused(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    tree = _windows(providers, tmp_path / "data", None, 100, 100)
    async with in_process(providers, tmp_path, models=tree["models"]) as service:
        await service.complete(user("x" * 2000), session_id="s")
        await providers.inject(Fault(kind=FaultKind.SERVER_ERROR, provider="aurora"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await service.complete(user("go on"), session_id="s")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "context window 100 tokens is less than the request's" in str(raised.value.details())
        assert not providers.requests("borealis")


async def test_f14_a_conversation_too_long_for_everybody_names_the_windows(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    tree = _windows(providers, tmp_path / "data", 100, 100, 100)
    async with in_process(providers, tmp_path, models=tree["models"]) as service:
        for options in ({}, DROP):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await service.complete(user("x" * 2000), session_id="s", **options)
            assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert details(raised.value)[ErrorInfo].reason == "CONTEXT_TOO_LONG"
        response, body = await _post(service, [{"role": "user", "content": "x" * 2000}])
        assert response.status == 400
        assert body["error"]["code"] == "context_too_long"


async def test_f14_with_leave_the_fallback_gets_instructions_and_newest_turns(
    providers: ProviderFleet, tmp_path: Path
) -> None:
    tree = _windows(providers, tmp_path / "data", None, 200, 200)
    system = {"role": "system", "content": "be brief"}
    async with in_process(providers, tmp_path, models=tree["models"]) as service:
        await _post(service, [system, {"role": "user", "content": "old " + "x" * 2000}], session="s")
        await _post(service, [{"role": "user", "content": "newer"}], session="s")
        await providers.inject(Fault(kind=FaultKind.REFUSE, provider="aurora"))
        reply = await service.complete(user("newest"), session_id="s", **DROP)
        assert reply.routing.provider == "borealis"
        sent = _sent(providers, "borealis")
        assert sent[0] == system
        assert [message["content"] for message in sent if message["role"] == "user"][-1] == "newest"
        assert reply.routing.dropped_messages == 6 - len(sent) > 0

        *_, last = [
            message
            async for message in service.stub.StreamComplete(stream_request(user("and now"), session_id="s", **DROP))
        ]
        assert last.report.dropped_messages > 0
        response, _ = await _post(
            service, [{"role": "user", "content": "once more"}], session="s", truncation="drop_oldest"
        )
        assert int(response.headers["x-routecast-dropped-messages"]) > 0
        # What was not sent was not forgotten.
        await providers.clear()
        await service.complete(user("all of it"), session_id="s", preferred_provider="aurora", idempotent=False)
        assert any(len(str(message["content"])) > 2000 for message in _sent(providers, "aurora"))


async def test_f14_the_configuration_may_give_leave_for_sessions(providers: ProviderFleet, tmp_path: Path) -> None:
    tree = _windows(providers, tmp_path / "data", 400, None, None)
    sections = {"models": tree["models"], "sessions": {"truncation": "drop_oldest"}}
    async with in_process(providers, tmp_path, **sections) as service:
        for turn in range(4):
            reply = await service.complete(user(f"{turn} " + "x" * 600), session_id="s")
            assert reply.routing.provider == "aurora"
        assert reply.routing.dropped_messages > 0
        reply = await service.complete(user("x" * 600), session_id="s", truncation=routing_pb2.TRUNCATION_REFUSE)
        assert (reply.routing.provider, reply.routing.dropped_messages) == ("borealis", 0)
        # Without a session only the request itself can give it.
        long = [{"role": "user", "content": "x" * 2000}, {"role": "user", "content": "short"}]
        assert (await _post(service, long))[0].headers["x-routecast-provider"] == "borealis"
        assert (await _post(service, long, truncation="drop_oldest"))[0].headers["x-routecast-provider"] == "aurora"


async def test_what_was_said_lies_sealed_on_the_disk(
    providers: ProviderFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions and kept results; keys may be exchanged, and without its key a conversation is not served without its
    past.
    """
    for name in ("OLD_KEY", "NEW_KEY"):
        monkeypatch.setenv(name, base64.b64encode(name.encode().ljust(32)).decode())
    config = tmp_path / "routecast.yaml"

    def with_keys(*names: str) -> Path:
        keys = [f"${{{name}}}" for name in names]
        return write_config(config, config_for(providers, tmp_path / "data", state={"encryption_keys": keys}))

    async with as_process(with_keys("OLD_KEY")) as process:
        await process.complete(user(SECRET), session_id="s")
        body = {"model": GPT4, "messages": [{"role": "user", "content": SECRET}]}
        async with process.http.post(
            f"{process.url}/v1/chat/completions", json=body, headers={"idempotency-key": "k"}
        ) as response:
            first = await response.read()
        await process.end(signal.SIGKILL)
    stored = b"".join(file.read_bytes() for file in (tmp_path / "data" / "state").iterdir())
    assert stored
    assert SECRET.encode() not in stored
    async with as_process(with_keys("NEW_KEY", "OLD_KEY")) as process:
        await process.complete(user("and?"), session_id="s")
        assert len(_sent(providers, "aurora")) == 3
        async with process.http.post(
            f"{process.url}/v1/chat/completions", json=body, headers={"idempotency-key": "k"}
        ) as response:
            assert await response.read() == first
        await process.end()
    async with as_process(with_keys("NEW_KEY")) as process:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await process.complete(user("still there?"), session_id="s")
        assert details(raised.value)[ErrorInfo].reason == "STATE_UNAVAILABLE"
        assert "state.encryption_keys" in str(raised.value.details())
        await process.complete(user("another"), session_id="t")


async def test_two_processes_of_one_name_do_not_share_a_store(providers: ProviderFleet, tmp_path: Path) -> None:
    config = write_config(tmp_path / "routecast.yaml", config_for(providers, tmp_path / "data"))
    async with as_process(config):
        code, _, errors = await run_to_end(sys.executable, "-m", "service.cli", "serve", "--config", str(config))
    assert code == 1
    assert "replicas that share a data_dir need different names" in errors
    assert "Traceback" not in errors
