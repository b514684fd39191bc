"""llmock judges the service: two of its processes are providers, the official SDK is the caller, and whatever goes
wrong, neither has a FAIL to report.

The judge sees only what reaches it. A stream cut before its first token is served by the other provider, out of its
sight, so the caller asks once more and the judge sees that the answer was not taken for whole.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from service.config_file import load
from service.main import running
from tests.e2e.judge import Judge, judging
from tests.service_under_test import Client, connected, until, write_config

MODEL = "chat"
DEADLINE_S = 30.0
# Which wire format the first provider speaks: its kind, and its path at the judge.
FIRST = {"openai": "/v1", "anthropic": "/anthropic"}
TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@dataclass(slots=True)
class Court:
    """The service, and who judges it from below."""

    service: Client
    first: Judge
    second: Judge

    async def ask(self, text: str, **options: Any) -> str:
        """One request as a caller makes it; the SDK's own retries are on, unless `max_retries` says otherwise."""
        sdk = self.service.sdk.with_options(max_retries=options.pop("max_retries", 2), timeout=DEADLINE_S)
        asked: Any = [{"role": "user", "content": text}]
        if not options.pop("stream", False):
            answer = await sdk.chat.completions.create(model=MODEL, messages=asked, **options)
            return answer.choices[0].message.content or str(answer.choices[0].message.tool_calls)
        spoken, finish = "", None
        async for chunk in await sdk.chat.completions.create(model=MODEL, messages=asked, stream=True, **options):
            for choice in chunk.choices:
                spoken += choice.delta.content or ""
                finish = choice.finish_reason or finish
        assert finish is not None, "a stream that ends without an error is whole"
        return spoken

    async def acquit(self) -> dict[str, Any]:
        """Assert that no judge found a fault with us; returns the first one's verdict."""
        verdicts = [await judge.verdict() for judge in (self.first, self.second)]
        for verdict in verdicts:
            assert [finding for finding in verdict["findings"] if finding["severity"] == "error"] == []
        return verdicts[0]


@pytest.fixture(scope="module")
def judges() -> Iterator[tuple[str, str]]:
    with judging() as first, judging() as second:
        yield first, second


@pytest.fixture(params=FIRST)
async def court(request: pytest.FixtureRequest, judges: tuple[str, str], tmp_path: Path) -> AsyncIterator[Court]:
    async with in_session(*judges, kind=request.param, directory=tmp_path) as court:
        yield court


@asynccontextmanager
async def in_session(first: str, second: str, *, kind: str, directory: Path) -> AsyncIterator[Court]:
    """The service before these judges, who have forgotten what was."""
    tree = {
        "server": {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", "drain_s": 5},
        "data_dir": str(directory / "data"),
        "providers": [
            {"name": "first", "kind": kind, "base_url": first + FIRST[kind]},
            {"name": "second", "base_url": f"{second}/v1"},
        ],
        "models": [
            {"id": MODEL, "endpoints": [{"provider": name, "provider_model": "m"} for name in ("first", "second")]}
        ],
        "scoring": {"enabled": False},
        "policy": {"attempts": {"ttft_timeout_s": 1.0, "reply_timeout_s": 1.0, "stall_timeout_s": 1.0}},
    }
    async with AsyncExitStack() as stack:
        config = load(write_config(directory / "routecast.yaml", tree))
        client = await connected(await stack.enter_async_context(running(config)), stack)
        court = Court(client, Judge(first, client.http), Judge(second, client.http))
        await court.first.reset()
        await court.second.reset()
        yield court


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503, 504, 529])
async def test_an_error_is_served_by_the_other_provider(court: Court, status: int, stream: bool) -> None:
    """F-17."""
    await court.first.script({"type": "fail", "status": status})
    assert await court.ask(f"hello after {status}", stream=stream)
    assert (await court.acquit())["faults_injected"] == 1
    assert len(await court.second.requests()) == 1


@pytest.mark.parametrize("status", [400, 422])
async def test_a_request_that_is_wrong_is_refused_once(court: Court, status: int) -> None:
    await court.first.script({"type": "fail", "status": status})
    with pytest.raises(openai.APIStatusError) as raised:
        await court.ask("refuse me")
    assert raised.value.status_code == status
    assert (await court.acquit())["attempts"] == 1
    assert await court.second.requests() == []


async def test_a_rate_limits_wait_is_kept(court: Court) -> None:
    """F-17: asked for two seconds of rest, the provider gets no request before they are over, however many come."""
    await court.first.script({"type": "fail", "status": 429, "retry_after": 2})
    for _ in range(8):
        assert await court.ask("again and again")
    assert (await court.acquit())["attempts"] == 1

    async def returned() -> bool:
        await court.ask("again and again")
        return len(await court.first.requests()) > 1

    await until(returned)
    await court.acquit()


async def test_an_outage_is_left_alone(court: Court) -> None:
    """No storm: a provider that is down gets a few requests, then probes now and then."""
    await court.first.script({"type": "fail", "status": 503, "times": None})
    for number in range(40):
        assert await court.ask(f"hello {number}", stream=bool(number % 2))
    await court.acquit()
    assert len(await court.first.requests()) < 20
    assert len(await court.second.requests()) == 40


@pytest.mark.parametrize("kind", ["delay", "slow_first_token"])
async def test_a_slow_provider_is_not_waited_for(court: Court, kind: str) -> None:
    await court.first.script({"type": kind, "seconds": 5})
    assert await court.ask("are you there?", stream=True)
    await court.acquit()
    assert len(await court.second.requests()) == 1


STREAM_FAULTS = ("disconnect", "truncate", "stall", "malformed")


@pytest.mark.parametrize("kind", STREAM_FAULTS)
@pytest.mark.parametrize("after", [0, 1])
async def test_a_stream_that_breaks_before_its_first_token_goes_on_unseen(court: Court, kind: str, after: int) -> None:
    """F-03."""
    await court.first.script({"type": "stream_fault", "kind": kind, "after_chunks": after, "stall_seconds": 5})
    assert await court.ask(f"{kind} {after}", stream=True)
    assert len(await court.second.requests()) == 1
    assert await court.ask(f"{kind} {after}", stream=True)
    assert (await court.acquit())["faults_injected"] == 1
    _, again = await court.first.requests()
    assert again["completed"]


@pytest.mark.parametrize("kind", STREAM_FAULTS)
async def test_a_stream_that_breaks_after_tokens_ends_with_an_error(court: Court, kind: str) -> None:
    """Never a silent truncation: the caller is told, and asks again."""
    await court.first.script({"type": "stream_fault", "kind": kind, "after_chunks": 5, "stall_seconds": 5})
    with pytest.raises(openai.APIError, match="the stream broke"):
        await court.ask(f"tell me more about {kind}", stream=True)
    assert await court.second.requests() == []
    assert await court.ask(f"tell me more about {kind}", stream=True)
    assert (await court.acquit())["faults_injected"] == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["malformed_arguments", "unknown_tool"])
async def test_what_a_model_says_passes_even_if_it_is_nonsense(court: Court, kind: str, stream: bool) -> None:
    """A tool call is the caller's to judge; it is neither mended nor repeated."""
    await court.first.script({"type": "tool_fault", "kind": kind})
    await court.ask("look", tools=TOOLS, stream=stream)
    await court.acquit()
    assert (len(await court.first.requests()), await court.second.requests()) == (1, [])


async def test_a_scripted_answer_arrives(court: Court) -> None:
    await court.first.script(
        {"type": "reply", "text": "exactly this"}, {"type": "reply", "tool_calls": [{"name": "look", "arguments": {}}]}
    )
    assert await court.ask("what?", stream=True) == "exactly this"
    assert "look" in await court.ask("what?", tools=TOOLS)
    await court.acquit()


async def _quota_refusals(court: Court, requests: int) -> list[openai.RateLimitError]:
    refused = []
    for number in range(requests):
        try:
            await court.ask(f"question {number}", stream=bool(number % 2), max_retries=0)
        except openai.RateLimitError as error:
            refused.append(error)
    return refused


async def test_l13_quotas_of_both_providers_give_clear_errors(tmp_path: Path) -> None:
    """Forty requests against two quotas of ten a minute."""
    with judging(rpm="10") as first, judging(rpm="10") as second:
        async with in_session(first, second, kind="openai", directory=tmp_path) as court:
            refused = await _quota_refusals(court, 40)
            assert 0 < len(refused) <= 20
            assert all(float(error.response.headers["retry-after"]) > 0 for error in refused)


async def test_l13_nobody_is_asked_before_the_time_it_named(tmp_path: Path) -> None:
    with judging(rpm="10") as first, judging(rpm="10") as second:
        async with in_session(first, second, kind="openai", directory=tmp_path) as court:
            await _quota_refusals(court, 40)
            await court.acquit()


async def test_the_judge_would_have_found_us_out(judges: tuple[str, str]) -> None:
    """A caller that takes half an answer, and one that does not wait, are failed by the same judge."""
    asked: Any = [{"role": "user", "content": "x"}]
    async with (
        aiohttp.ClientSession() as http,
        openai.AsyncOpenAI(base_url=f"{judges[0]}/v1", api_key="none", max_retries=0) as sdk,
    ):
        judge = Judge(judges[0], http)
        await judge.reset()
        await judge.script(
            {"type": "fail", "status": 429, "retry_after": 5},
            {"type": "stream_fault", "kind": "truncate", "after_chunks": 3},
        )
        with pytest.raises(openai.RateLimitError):
            await sdk.chat.completions.create(model="m", messages=asked)
        await sdk.chat.completions.create(model="m", messages=asked)
        _ = [chunk async for chunk in await sdk.chat.completions.create(model="m", messages=asked, stream=True)]
        found = {finding["code"] for finding in (await judge.verdict())["findings"]}
    assert found >= {"retry_after_ignored", "truncated_stream_accepted"}
