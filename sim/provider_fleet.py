"""All simulated providers of a scenario, their common clock, and the faults in force.

The rule of this file: one list of faults on one monotonic clock decides everything. Scenario faults join it when the
scenario's clock starts, injected ones at once; listeners follow the list, requests ask it.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sim.faults import Effect, Fault, effect_at
from sim.provider import ReceivedRequest, SimulatedProvider
from sim.scenario import Provider, Scenario


@dataclass(frozen=True, slots=True)
class ProviderStats:
    """Counters of one provider: settled requests by outcome, and what is open now."""

    outcomes: Mapping[str, int]
    in_flight: int
    connections: int
    refusing: bool

    @property
    def total(self) -> int:
        """Requests with a settled outcome."""
        return sum(self.outcomes.values())


class ProviderFleet:
    """Simulated providers on real sockets; an async context manager that leaves nothing behind.

    Args:
        scenario: providers and faults. Its faults wait for `start_clock`; injected ones do not.
        keep: how many of each provider's last requests to remember with their bodies.
    """

    def __init__(self, scenario: Scenario, *, keep: int = 256) -> None:
        self.scenario = scenario
        self._keep = keep
        self._faults: tuple[Fault, ...] = ()
        self._begun_s = 0.0
        self._started_s: float | None = None
        self._providers: dict[str, SimulatedProvider] = {}
        self._following: asyncio.Task[None] | None = None
        self._faults_changed = asyncio.Event()
        self._counters_changed = asyncio.Event()
        self._listeners = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Bind every port and serve; raises OSError when a fixed port is taken."""
        self._begun_s = asyncio.get_running_loop().time()
        try:
            for spec in self.scenario.providers:
                provider = SimulatedProvider(
                    spec,
                    seed=self.scenario.seed,
                    effect=self._effect_on(spec),
                    clock=self._now,
                    changed=self._counters_changed.set,
                    keep=self._keep,
                )
                self._providers[spec.name] = provider
                await provider.start()
        except OSError:
            await self._stop()
            raise
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Reset every connection, cancel every request, free every port."""
        await self._stop()

    @property
    def clock_s(self) -> float | None:
        """Seconds since the scenario's clock started; None before that."""
        return None if self._started_s is None else self._now() - self._started_s

    @property
    def names(self) -> tuple[str, ...]:
        """The providers, in the scenario's order."""
        return tuple(provider.name for provider in self.scenario.providers)

    def port(self, name: str) -> int:
        """The port that provider `name` holds, also while it refuses."""
        return self._providers[name].port

    def url(self, name: str) -> str:
        """The base URL of provider `name` for a client of its wire format."""
        return self._providers[name].url

    def requests(self, name: str) -> tuple[ReceivedRequest, ...]:
        """The last requests that reached provider `name`, oldest first, byte for byte."""
        return tuple(self._providers[name].received)

    def stats(self, name: str) -> ProviderStats:
        """The counters of provider `name` now."""
        provider = self._providers[name]
        return ProviderStats(dict(provider.outcomes), provider.in_flight, provider.connections, provider.refusing)

    async def start_clock(self) -> None:
        """Start the scenario's clock: its faults run from now. Raises RuntimeError when it runs already."""
        if self._started_s is not None:
            raise RuntimeError("the scenario's clock runs already")
        self._started_s = self._now()
        await self._replace((*self._faults, *(fault.shifted(self._started_s) for fault in self.scenario.faults)))

    async def inject(self, *faults: Fault) -> None:
        """Add faults whose `at_s` counts from now; those with `at_s` 0 are in force on return."""
        now_s = self._now()
        await self._replace((*self._faults, *(fault.shifted(now_s) for fault in faults)))

    async def clear(self) -> None:
        """Drop every fault, scripted ones that are still to come included; all listen again on return."""
        await self._replace(())

    async def until(self, holds: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        """Wait for a condition on the counters; raises TimeoutError when it does not come true in time."""
        async with asyncio.timeout(timeout_s):
            while not holds():
                self._counters_changed.clear()
                await self._counters_changed.wait()

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._begun_s

    def _effect_on(self, spec: Provider) -> Callable[[], Effect]:
        def effect() -> Effect:
            return effect_at(self._faults, spec.name, spec.region, self._now(), spec.baseline_error_rate)

        return effect

    async def _replace(self, faults: tuple[Fault, ...]) -> None:
        now_s = self._now()
        self._faults = tuple(fault for fault in faults if fault.end_s > now_s)
        await self._settle_listeners()
        self._faults_changed.set()

    async def _settle_listeners(self) -> None:
        async with self._listeners:
            for provider in self._providers.values():
                spec = provider.spec
                refuse = effect_at(self._faults, spec.name, spec.region, self._now()).refuse
                if refuse and not provider.refusing:
                    await provider.refuse()
                elif not refuse and provider.refusing:
                    await provider.accept()
            self._counters_changed.set()

    async def _follow(self) -> None:
        """Move the listeners at every moment a fault begins or ends."""
        while True:
            self._faults_changed.clear()
            now_s = self._now()
            moments = (moment for fault in self._faults for moment in (fault.at_s, fault.end_s) if moment > now_s)
            next_s = min(moments, default=math.inf)
            try:
                async with asyncio.timeout(None if next_s == math.inf else next_s - now_s):
                    await self._faults_changed.wait()
            except TimeoutError:
                await self._settle_listeners()

    async def _stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await asyncio.gather(*(provider.stop() for provider in self._providers.values()))
