"""Consecutive: the classic failover manager. Three failures in a row take an endpoint out until a health check passes.

Parameters (the defaults of requirement F-18, which many managers share): unhealthy after 3 consecutive failures of
requests or health checks, health checks of every endpoint every 60 s with a timeout of 5 s, next in the ordered chain.
Where custom is silent: one passed check suffices for the return; a failed request goes at once to the next endpoint
of the chain, each of which is tried once; with all of them out the chain is tried from its start; requests time out
after 60 s; rate limits and refused keys count as failures, because such managers look for a success.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SILENT, Baseline, Settings, may_retry


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsecutiveSettings(Settings):
    """See the module's docstring."""

    max_failures: int = 3
    probe_interval_s: float = 60.0
    probe_timeout_s: float = 5.0
    attempt_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0


class Consecutive(Baseline):
    """See the module's docstring."""

    name = "consecutive"

    def __init__(self, endpoints: int, settings: ConsecutiveSettings) -> None:
        super().__init__(endpoints, settings, attempts=endpoints)
        self.probe_timeout_s = settings.probe_timeout_s
        self._settings = settings
        self._failures = [0] * endpoints
        self._healthy = [True] * endpoints
        self._checked = [0.0] * endpoints

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the first healthy endpoint not tried yet, or the first not tried."""
        left = None
        for endpoint in self._order:
            if endpoint not in tried:
                if self._healthy[endpoint]:
                    return endpoint
                if left is None:
                    left = endpoint
        return left

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Go on at once while the chain lasts."""
        return 0.0 if may_retry(made, self._count - 1) else None

    def finished(self, attempted: Attempted, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Count failures in a row. A late success does not bring an unhealthy endpoint back: only a check does."""
        if attempted.outcome not in SILENT:
            self._count_in(attempted.endpoint, ok=attempted.outcome is Outcome.OK)

    def tick(self, now: float) -> Sequence[int]:
        """Return the endpoints whose check is due."""
        due = [e for e in self._order if now - self._checked[e] >= self._settings.probe_interval_s]
        for endpoint in due:
            self._checked[endpoint] = now
        return due

    def probed(self, attempted: Attempted, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Judge a health check."""
        passed = attempted.outcome is Outcome.OK
        self._count_in(attempted.endpoint, ok=passed)
        if passed:
            self._healthy[attempted.endpoint] = True

    def _count_in(self, endpoint: int, *, ok: bool) -> None:
        self._failures[endpoint] = 0 if ok else self._failures[endpoint] + 1
        if self._failures[endpoint] >= max(1, self._settings.max_failures):
            self._healthy[endpoint] = False
