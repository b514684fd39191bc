"""F-01 by latency: parts as `service.main` joins them, on a clock that a test may set forward, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from routing.engine import Engine
from routing.health import State
from routing.model import RouteRequest
from routing.outcomes import Outcome
from routing.policy import FailbackPolicy, Policy
from service.complete import Completer
from service.completion import Begun, Completion, Continued, Report
from service.config_file import load
from service.errors import StreamBrokenError
from service.providers.aiohttp_transport import AiohttpTransport
from service.providers.base import Operation
from service.providers.openai_compatible import OpenAICompatible
from service.router import Router
from service.sessions import SessionStore
from service.store.state import state_store
from sim.faults import FaultKind
from sim.provider_server import Fault, ProviderFleet
from sim.scenario import parse_scenario
from tests.service_under_test import GPT4, SCENARIO, config_for, until, write_config

BASELINE = 25
FIELDS = {
    "model": msgspec.Raw(msgspec.json.encode(GPT4)),
    "messages": msgspec.Raw(b'[{"role":"user","content":"hello"}]'),
}


class LeapingClock:
    """Real time, set forward by `leap`: an hour passes at once, a request still takes what it takes."""

    def __init__(self) -> None:
        self._ahead_s = 1e9

    def now(self) -> float:
        return time.monotonic() + self._ahead_s

    def leap(self, seconds: float) -> None:
        self._ahead_s += seconds


@dataclass(frozen=True, slots=True)
class Parts:
    """A service without its edges."""

    fleet: ProviderFleet
    clock: LeapingClock
    router: Router
    completer: Completer

    async def served_by(self) -> Report:
        served = await self.completer.complete(
            Completion(Operation.CHAT, FIELDS, RouteRequest(GPT4), request_id="r", edge="test")
        )
        return served.report


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    scenario = parse_scenario(SCENARIO.replace("ttft_ms: 1\n", "ttft_ms: 10\n"))
    async with ProviderFleet(scenario) as fleet, AiohttpTransport() as transport:
        config = load(write_config(tmp_path / "routecast.yaml", config_for(fleet, tmp_path / "data")))
        clock, policy = LeapingClock(), Policy(failback=FailbackPolicy(degraded_share=1e-9))
        router = Router(Engine(config.catalogue(), policy, clock.now()), clock, Random(5))
        adapters = {p.name: OpenAICompatible(p.base_url, transport) for p in config.providers}
        async with state_store(config, clock) as state:
            sessions = SessionStore(config.sessions, clock, state.conversations)
            completer = Completer(router, adapters, sessions, lambda _: None, lambda *_: None, "test")
            yield Parts(fleet, clock, router, completer)


async def test_f01_latency_past_its_threshold_moves_the_model_to_the_secondary(parts: Parts) -> None:
    """Ten times its own normal: no request fails, and the decision names ratio and threshold."""
    for _ in range(BASELINE):
        assert (await parts.served_by()).endpoint.provider == "aurora"
    parts.clock.leap(90)
    await parts.fleet.inject(Fault(kind=FaultKind.LATENCY_RAMP, provider="aurora", peak=10, ramp_s=1e-6))
    slow = 0
    while (await parts.served_by()).endpoint.provider == "aurora":
        slow += 1
        assert slow <= 20, "aurora stays in spite of its latency"
    assert slow >= 5, "a single slow answer is no trend"
    for _ in range(3):
        report = await parts.served_by()
        assert (report.endpoint.provider, len(report.attempts)) == ("borealis", 1)
    health = parts.router.engine.health_of(f"aurora:{GPT4}")
    assert health.state is State.DEGRADED
    decision = parts.router.recall(report.attempts[0].decision_id).decision
    (primary,) = (c for c in decision.considered if c.candidate.facts.endpoint.provider == "aurora")
    assert primary.candidate.facts.state is State.DEGRADED
    assert primary.candidate.facts.latency_ratio >= parts.router.engine.policy.reflex.latency_ratio
    assert primary.candidate.contributions["steadiness"] <= 1 / parts.router.engine.policy.reflex.latency_ratio


async def test_f01_requests_that_hang_past_their_threshold_move_the_model_to_the_secondary(parts: Parts) -> None:
    """Latency without an answer: the wait itself is the metric, seen before anything times out."""
    for _ in range(BASELINE):
        assert (await parts.served_by()).endpoint.provider == "aurora"
    parts.clock.leap(90)
    await parts.fleet.inject(Fault(kind=FaultKind.HANG, provider="aurora"))
    hanging = [asyncio.create_task(parts.served_by()) for _ in range(2)]
    window = parts.router.engine.window_of(f"aurora:{GPT4}")

    async def both_wait() -> bool:
        return window.in_flight == len(hanging)

    await until(both_wait)
    parts.clock.leap(5)
    parts.router.tick()
    assert parts.router.engine.health_of(f"aurora:{GPT4}").state is State.EJECTED
    assert (await parts.served_by()).endpoint.provider == "borealis"
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def _crawl(parts: Parts, **wishes: Any) -> list[Any]:
    """Stream while aurora crawls, 45 s from one event to the next; return what came."""
    await parts.fleet.inject(Fault(kind=FaultKind.CRAWL, provider="aurora", tokens_per_s_multiplier=0.002))
    fields = FIELDS | {"min_tokens": msgspec.Raw(b"400")}
    completion = Completion(
        Operation.CHAT, fields, RouteRequest(GPT4), request_id="r", edge="test", stream=True, **wishes
    )
    came: list[Any] = []
    async with aclosing(parts.completer.stream(completion)) as items:
        while not came or not isinstance(came[-1], Report):
            waiting = asyncio.ensure_future(anext(items))
            if came and came[-1] is not None and not any(isinstance(item, Continued) for item in came):
                # While nobody but the provider is waited for: a reader's own time is not the provider's.
                await asyncio.sleep(0)
                parts.clock.leap(45)
            came.append(await waiting)
    return came


async def test_a_stream_that_crawls_is_ended_openly(parts: Parts) -> None:
    """A token in 45 s is below any floor, though no single pause is as long as a stall."""
    with pytest.raises(StreamBrokenError, match=r"the stream crawled at 0\.0[0-9]+ tokens/s, below its floor of 1"):
        await _crawl(parts)
    assert parts.fleet.stats("borealis").total == 0
    await parts.fleet.until(lambda: parts.fleet.stats("aurora").in_flight == 0)


async def test_a_stream_that_crawls_goes_on_elsewhere_for_who_asked(parts: Parts) -> None:
    came = await _crawl(parts, continues=True)
    assert isinstance(came[0], Begun)
    (continued,) = (item for item in came if isinstance(item, Continued))
    assert continued.endpoint.provider == "borealis"
    assert [a.outcome for a in came[-1].attempts] == [Outcome.STALLED, Outcome.OK]
    await parts.fleet.until(lambda: parts.fleet.stats("aurora").in_flight == 0)


async def test_a_slow_reader_is_not_taken_for_a_crawl(parts: Parts) -> None:
    completion = Completion(
        Operation.CHAT, FIELDS, RouteRequest(GPT4), request_id="r", edge="test", stream=True, continues=True
    )
    async with aclosing(parts.completer.stream(completion)) as items:
        async for item in items:
            parts.clock.leap(45)
            last = item
    assert isinstance(last, Report)
    assert last.endpoint.provider == "aurora"
