"""Connections kept ready to every provider, so that a failover does not begin with a TCP and TLS handshake (F-12).

The rule of this file: readiness is a convenience. What fails here is not an observation, is not counted, and is tried
again later: whether a provider can be reached is for requests and probes to find out.
"""

import asyncio
from collections.abc import Iterable, Mapping

from routing.actions import DomainChanged, Finished, Transitioned
from routing.health import State
from routing.model import Endpoint
from service.providers.transport import IDLE_S, Transport
from service.router import Decided

_ROUND_S = IDLE_S * 0.6  # idle connections are dropped at IDLE_S: each round finds them still there and renews them


class Prewarmer:
    """Keeps `connections` idle ones to each provider. A `Listener`: whoever returns to service is warmed at once.

    Args:
        transport: whose connections they are.
        base_urls: of each provider, by name.
        connections: how many for each.
        connect_s: how long making one may take.
    """

    def __init__(
        self, transport: Transport, base_urls: Mapping[str, str], *, connections: int, connect_s: float
    ) -> None:
        self._transport = transport
        self._base_urls = dict(base_urls)
        self._connections = connections
        self._connect_s = connect_s
        self._returned: set[str] = set()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Warm all, then all again in every round, and in between those that have returned. Ends when cancelled."""
        while True:
            await self.warm(self._base_urls)
            round_ends = asyncio.get_running_loop().time() + _ROUND_S
            try:
                async with asyncio.timeout_at(round_ends):
                    while True:
                        await self._wake.wait()
                        self._wake.clear()
                        returned, self._returned = self._returned, set()
                        await self.warm(returned)
            except TimeoutError:
                pass

    async def warm(self, providers: Iterable[str]) -> None:
        """Warm these providers, all at once."""
        urls = {self._base_urls[name] for name in providers}
        await asyncio.gather(
            *(self._transport.prewarm(url, self._connections, self._connect_s) for url in urls), return_exceptions=True
        )

    def transitioned(self, action: Transitioned) -> None:
        """An endpoint that takes traffic again gets its connections back before the traffic."""
        if action.transition.to_state in (State.CANARY, State.ACTIVE):
            self._returned.add(action.endpoint.provider)
            self._wake.set()

    def decided(self, decided: Decided) -> None:
        """Nothing."""

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """Nothing."""

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """Nothing."""

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """Nothing."""

    def domain_changed(self, action: DomainChanged) -> None:
        """Nothing: its endpoints return one by one."""
