"""What an operator can see from outside: the service's own explanation of how it would route now, asked a few times a
second.
"""

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
from routecast.v1 import router_pb2, router_pb2_grpc, routing_pb2

from sim.demo.story import Story

_EVERY_S = 0.25
_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class EndpointView:
    """One endpoint now. `share` of new requests, `score` and `risk` are in [0, 1]; None when not known."""

    provider: str
    region: str
    state: str
    score: float
    risk: float | None
    share: float
    p50_ms: float | None


@dataclass(frozen=True, slots=True)
class Change:
    """An endpoint's state was another one at the last look. `time` is unix seconds."""

    time: float
    provider: str
    before: str
    after: str


class Watcher:
    """Looks at the service until told to stop; an async context manager that holds the connection.

    `views` are in the configured order, `changes` oldest first. `threshold` is the risk
    at which the service moves traffic, None while it has no forecaster.
    """

    def __init__(self, target: str, story: Story) -> None:
        self.views: tuple[EndpointView, ...] = ()
        self.changes: list[Change] = []
        self.forecaster = ""
        self.threshold: float | None = None
        self._order = [provider.name for provider in story.scenario.providers]
        self._question = router_pb2.ExplainRouteRequest(request=router_pb2.RouteRequest(model=story.chat))
        self._channel = grpc.aio.insecure_channel(target)
        self._stub = router_pb2_grpc.RouterServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """Connect."""
        await self._channel.channel_ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._channel.close()

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop`. Raises grpc.aio.AioRpcError when the service no longer answers."""
        while not stop.is_set():
            self._take(await self._stub.ExplainRoute(self._question, timeout=_TIMEOUT_S))
            try:
                async with asyncio.timeout(_EVERY_S):
                    await stop.wait()
            except TimeoutError:
                continue

    def _take(self, answer: router_pb2.ExplainRouteResponse) -> None:
        views = sorted((_view(c) for c in answer.candidates), key=lambda view: self._order.index(view.provider))
        before = {view.provider: view.state for view in self.views}
        self.views, self.forecaster = tuple(views), answer.forecaster
        threshold = answer.thresholds.get("forecast.threshold", "None")
        self.threshold = None if threshold == "None" else float(threshold)
        for view in views:
            if before.get(view.provider, view.state) != view.state:
                self.changes.append(Change(time.time(), view.provider, before[view.provider], view.state))


def _view(candidate: routing_pb2.Candidate) -> EndpointView:
    latency = candidate.median_latency.ToMicroseconds() / 1e3 if candidate.HasField("median_latency") else None
    return EndpointView(
        provider=candidate.provider,
        region=candidate.region,
        state=routing_pb2.HealthState.Name(candidate.state).removeprefix("HEALTH_STATE_").lower(),
        score=candidate.score,
        risk=candidate.risk if candidate.HasField("risk") else None,
        share=candidate.share,
        p50_ms=latency,
    )
