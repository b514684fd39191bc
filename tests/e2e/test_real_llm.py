"""Two real language models behind the real service; the first is killed, and the answers keep coming (F-02, F-05)."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from routecast.v1 import chat_pb2, router_pb2, routing_pb2

from tests.e2e.llm_servers import LlmServer, llm_server
from tests.service_under_test import ServiceProcess, as_process, details, read_history, tried, user, write_config

pytestmark = pytest.mark.real_llm
MODEL = "smollm2"
ASKED: Any = [{"role": "user", "content": "Say hello."}]
DEADLINE_S = 60.0
TOKENS = 12
MANY_TOKENS = 400  # at some 20 a second, far more than a test waits for


@dataclass(slots=True)
class Story:
    """The service and its two models, the primary first."""

    service: ServiceProcess
    first: LlmServer
    second: LlmServer
    data_dir: Path


@pytest.fixture
async def story(tmp_path: Path) -> AsyncIterator[Story]:
    async with AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(llm_server()) for _ in range(2)]
        tree = {
            "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0"},
            "data_dir": str(tmp_path / "data"),
            "providers": [
                {"name": "first", "base_url": first.base_url},
                {"name": "second", "base_url": second.base_url},
            ],
            "models": [
                {
                    "id": MODEL,
                    "capabilities": ["chat", "streaming"],
                    "endpoints": [{"provider": name, "provider_model": "default"} for name in ("first", "second")],
                }
            ],
            "scoring": {"enabled": False},
            # A thread of a small machine may take a while to read a prompt; only a dead server is to be left.
            "policy": {"reflex": {"hang_floor_s": 30}, "attempts": {"ttft_timeout_s": 60}},
        }
        config = write_config(tmp_path / "routecast.yaml", tree)
        service = await stack.enter_async_context(as_process(config))
        yield Story(service, first, second, tmp_path / "data")


def _chat(*texts: str, tokens: int = TOKENS) -> chat_pb2.ChatRequest:
    messages = [user(text) for text in texts or ("Say hello.",)]
    return chat_pb2.ChatRequest(model=MODEL, messages=messages, temperature=0, max_output_tokens=tokens)


async def _complete(story: Story, *texts: str, session_id: str = "") -> router_pb2.CompleteResponse:
    request = router_pb2.CompleteRequest(chat=_chat(*texts), routing=routing_pb2.RoutingOptions(session_id=session_id))
    return await story.service.stub.Complete(request, timeout=DEADLINE_S)


async def _stream(story: Story) -> tuple[str, routing_pb2.RoutingReport]:
    text = ""
    request = router_pb2.StreamCompleteRequest(chat=_chat())
    async for message in story.service.stub.StreamComplete(request, timeout=DEADLINE_S):
        text += "".join(delta.text for delta in message.chunk.deltas)
    return text, message.report


async def _all_four_answer_from(story: Story, name: str) -> None:
    """Complete and StreamComplete over gRPC, and both forms of the official SDK over HTTP."""
    reply = await _complete(story)
    assert reply.choices[0].message.text.strip()
    assert reply.usage.output_tokens > 0
    assert reply.routing.provider == name

    text, report = await _stream(story)
    assert text.strip()
    assert report.provider == name

    sdk = story.service.sdk.with_options(timeout=DEADLINE_S).chat.completions
    answered = await sdk.with_raw_response.create(model=MODEL, messages=ASKED, max_tokens=TOKENS, temperature=0)
    assert answered.headers["x-routecast-provider"] == name
    assert (answered.parse().choices[0].message.content or "").strip()

    spoken, finished = "", None
    async for chunk in await sdk.create(model=MODEL, messages=ASKED, max_tokens=TOKENS, temperature=0, stream=True):
        spoken += chunk.choices[0].delta.content or ""
        finished = chunk.choices[0].finish_reason or finished
    assert spoken.strip()
    assert finished in ("stop", "length")


async def test_answers_keep_coming_when_the_first_model_is_killed(story: Story) -> None:
    await _all_four_answer_from(story, "first")
    await story.first.kill()
    reply = await _complete(story)
    assert tried(reply.routing)[-1] == ("second", "OK")
    assert tried(reply.routing)[0][0] == "first"
    await _all_four_answer_from(story, "second")
    assert await story.service.end() == 0
    failed = read_history(story.data_dir, "SELECT count(*) FROM requests WHERE status <> 'ok'")
    assert failed == [(0,)]


@pytest.mark.parametrize("edge", ["grpc", "http"])
async def test_a_stream_cut_by_the_kill_ends_honestly_and_the_next_is_whole(story: Story, edge: str) -> None:
    if edge == "grpc":
        request = router_pb2.StreamCompleteRequest(chat=_chat("Tell me a very long story.", tokens=MANY_TOKENS))
        messages = aiter(story.service.stub.StreamComplete(request, timeout=DEADLINE_S))
        assert (await anext(messages)).WhichOneof("event") == "chunk"
        await story.first.kill()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            _ = [message async for message in messages]
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details(raised.value)[ErrorInfo].reason == "STREAM_BROKEN"
    else:
        stream = await story.service.sdk.chat.completions.create(
            model=MODEL, messages=ASKED, max_tokens=MANY_TOKENS, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = aiter(stream)
        await anext(chunks)
        await story.first.kill()
        with pytest.raises(openai.APIError, match="the stream broke"):
            _ = [chunk async for chunk in chunks]
    text, report = await _stream(story)
    assert text.strip()
    assert report.provider == "second"


async def test_f05_a_conversation_survives_the_kill(story: Story) -> None:
    """The second model is given what the first was told: its prompt is longer by the whole conversation."""
    alone = await _complete(story, "What did I say?")
    opening = await _complete(story, "My name is Ada and I live in Oslo.", session_id="ada")
    assert opening.routing.provider == "first"
    await story.first.kill()
    going_on = await _complete(story, "What did I say?", session_id="ada")
    assert going_on.routing.provider == "second"
    added = opening.usage.input_tokens + opening.usage.output_tokens
    assert going_on.usage.input_tokens > max(added, alone.usage.input_tokens)
