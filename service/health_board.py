"""What operators see: the health of every endpoint as it is now, with when it last succeeded, failed and was probed.

The rule of this file: the engine is read, never asked to do anything; what the engine does not keep is heard as a
listener. Watchers are woken at every change of state and look at most once a second otherwise.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf

from routing.actions import DomainChanged, Finished, Transitioned
from routing.domains import Outage
from routing.engine import Engine
from routing.health import State
from routing.model import Endpoint
from routing.outcomes import TRAITS
from routing.snapshot import Candidate
from service.router import Decided

_LOOK_AGAIN_S = 1.0


class Status(StrEnum):
    """How well something is, in a word; from best to worst as listed."""

    HEALTHY = "healthy"
    UNKNOWN = "unknown"
    DEGRADED = "degraded"
    CHECKING = "checking"
    UNHEALTHY = "unhealthy"


STATUS_OF: dict[State, Status] = {
    State.ACTIVE: Status.HEALTHY,
    State.UNKNOWN: Status.UNKNOWN,
    State.DEGRADED: Status.DEGRADED,
    State.CANARY: Status.DEGRADED,
    State.PROBING: Status.CHECKING,
    State.EJECTED: Status.UNHEALTHY,
    State.DRAINING: Status.UNHEALTHY,
}
_BADNESS = {status: i for i, status in enumerate(Status)}


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """One endpoint as it is now. Times are unix seconds, None for what has not happened."""

    candidate: Candidate
    status: Status
    warned: bool
    pinned: bool
    last_probe: float | None
    last_success: float | None
    last_failure: float | None
    last_error: str
    consecutive_failures: int


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at one moment: endpoints by provider, and the failure domains that are down."""

    providers: Mapping[str, Sequence[EndpointHealth]]
    outages: tuple[Outage, ...]

    def status_of(self, provider: str) -> Status:
        """Return the status of the provider's endpoint in the worst health."""
        return max((endpoint.status for endpoint in self.providers[provider]), key=_BADNESS.__getitem__)


class HealthBoard:
    """A listener that remembers the last failure and probe of each endpoint, and shows them with the engine's state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._failed: dict[str, tuple[float, str]] = {}
        self._checked: dict[str, float] = {}
        self._watchers: set[asyncio.Event] = set()
        self._closed = False

    def decided(self, decided: Decided) -> None:
        """Nothing: a decision changes no health."""

    def started(self, endpoint: Endpoint, attempt_id: str, now: float, *, streamed: bool) -> None:
        """Nothing: the engine counts what is in flight."""

    def first_byte(self, endpoint: Endpoint, attempt_id: str, now: float) -> None:
        """Nothing: the engine keeps latencies."""

    def finished(self, endpoint: Endpoint, result: Finished, now: float) -> None:
        """Remember a failure."""
        if TRAITS[result.outcome].failed:
            self._failed[endpoint.id] = now, result.outcome.value

    def transitioned(self, action: Transitioned) -> None:  # noqa: ARG002  # the protocol's signature
        """Wake the watchers."""
        self._wake()

    def domain_changed(self, action: DomainChanged) -> None:  # noqa: ARG002  # the protocol's signature
        """Wake the watchers."""
        self._wake()

    def checked(self, endpoint_id: str, now: float) -> None:
        """An operator had the endpoint probed."""
        self._checked[endpoint_id] = now

    def overview(self) -> Overview:
        """Return everything as it is now."""
        snapshot = self._engine.snapshot
        providers: dict[str, list[EndpointHealth]] = {}
        for model in sorted(snapshot.rankings):
            for candidate in snapshot.candidates(model):
                providers.setdefault(candidate.facts.endpoint.provider, []).append(self._health_of(candidate))
        return Overview(dict(sorted(providers.items())), self._engine.outages)

    def endpoint(self, endpoint_id: str) -> EndpointHealth:
        """Return one endpoint as it is now. Raises UnknownEndpointError."""
        endpoint = self._engine.catalogue.endpoint(endpoint_id)
        candidates = self._engine.snapshot.candidates(endpoint.model)
        return self._health_of(next(c for c in candidates if c.facts.endpoint.id == endpoint_id))

    def _health_of(self, candidate: Candidate) -> EndpointHealth:
        engine, facts = self._engine, candidate.facts
        name, snapshot = facts.endpoint.id, engine.snapshot
        window, health = engine.window_of(name), engine.health_of(name)
        # A snapshot is as old as the last tick; the state itself is not.
        candidate = replace(candidate, facts=replace(facts, in_flight=window.in_flight))
        failed, error = self._failed.get(name, (None, ""))
        probed = max(health.probed_at, self._checked.get(name, 0.0))
        return EndpointHealth(
            candidate=candidate,
            status=STATUS_OF[facts.state],
            warned=facts.risk is not None and snapshot.threshold is not None and facts.risk >= snapshot.threshold,
            pinned=snapshot.pinned.get(facts.endpoint.model) == name,
            last_probe=probed or None,
            last_success=window.last_ok_at if window.last_ok_at > -inf else None,
            last_failure=failed,
            last_error=error,
            consecutive_failures=window.consecutive_failures,
        )

    async def watch(self) -> AsyncIterator[Overview]:
        """Yield the overview now and when it may have changed, until `close`."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while not self._closed:
                changed.clear()
                yield self.overview()
                try:
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            self._watchers.discard(changed)

    def close(self) -> None:
        """End every watch: the service drains."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        for watcher in self._watchers:
            watcher.set()
