"""SMG (the SGLang model gateway): a breaker per worker, health checks, cache-aware choice, retries with backoff.

Published defaults (documentation "Resilience configuration", 2026): out after 10 consecutive failures for 60 s, then
probing until 3 successes, any failure starts the 60 s again; a health check of 5 s every 60 s, out after 3 failed
ones and back after 2 passed; 5 retries on 408, 429, 500, 502, 503 and 504 after 50 ms × 1.5ⁿ up to 30 s, ± 20 %;
1,800 s for a request. Cache-aware choice: where the prompt's prefix is, unless loads differ by more than 64 and by
1.5 ×.

Where the documentation is silent: a session's prefix lives on the worker at its number, or the next one in service; a
retry chooses in the same way, so that it may meet the same worker; probing takes any number of requests; results of
requests sent before an ejection do not count while it lasts; with no worker in service the gateway refuses (503).
Balanced: no endpoint is preferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SERVER_FAULTS, SILENT, Baseline, Settings, may_retry

_RETRIED = SERVER_FAULTS | {Outcome.RATE_LIMITED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SMGSettings(Settings):
    """See the module's docstring."""

    max_failures: int = 10
    ejection_s: float = 60.0
    successes: int = 3
    check_interval_s: float = 60.0
    probe_timeout_s: float = 5.0
    check_failures: int = 3
    check_successes: int = 2
    retries: int = 5
    first_wait_s: float = 0.05
    max_wait_s: float = 30.0
    wait_factor: float = 1.5
    jitter_share: float = 0.2
    load_difference: int = 64
    load_factor: float = 1.5
    attempt_timeout_s: float = 1800.0
    stall_timeout_s: float = 1800.0


class SMG(Baseline):
    """See the module's docstring. Of a worker, `_until` is None while it is active, else the end of its ejection."""

    name = "smg"

    def __init__(self, endpoints: int, settings: SMGSettings) -> None:
        super().__init__(endpoints, settings, attempts=1 + settings.retries)
        self.probe_timeout_s = settings.probe_timeout_s
        self._settings = settings
        self._failures = [0] * endpoints
        self._successes = [0] * endpoints
        self._until: list[float | None] = [None] * endpoints
        self._pending = [0] * endpoints
        self._checked = [0.0] * endpoints
        self._checks_failed = [0] * endpoints
        self._checks_passed = [0] * endpoints
        self._healthy = [True] * endpoints

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the session's worker, the next one in service, or the least loaded when loads are too uneven."""
        ready = [e for e in self._order if self._healthy[e] and ((until := self._until[e]) is None or until <= now)]
        if not ready:
            return None
        pending, settings = self._pending, self._settings
        least = min(ready, key=pending.__getitem__)
        most = max(pending[e] for e in ready)
        if most - pending[least] > settings.load_difference and most > settings.load_factor * pending[least]:
            return least
        home = request.session % self._count
        return next((e for e in ready if e >= home), ready[0])

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Wait longer before each retry."""
        settings = self._settings
        if not may_retry(made, settings.retries) or made[-1].outcome not in _RETRIED:
            return None
        wait_s = min(settings.first_wait_s * settings.wait_factor ** (len(made) - 1), settings.max_wait_s)
        return wait_s * (1.0 + settings.jitter_share * (2.0 * draw - 1.0))

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Count it as pending."""
        self._pending[endpoint] += 1

    def finished(self, attempted: Attempted, now: float) -> None:
        """Move the worker's breaker."""
        endpoint = attempted.endpoint
        self._pending[endpoint] -= 1
        until = self._until[endpoint]
        if attempted.outcome in SILENT or (until is not None and now < until):
            return
        settings = self._settings
        if attempted.outcome in _RETRIED and attempted.ttft_s is None:
            self._failures[endpoint] += 1
            if until is not None or self._failures[endpoint] >= settings.max_failures:
                self._until[endpoint] = now + settings.ejection_s
                self._failures[endpoint] = self._successes[endpoint] = 0
            return
        self._failures[endpoint] = 0
        if until is not None:
            self._successes[endpoint] += 1
            if self._successes[endpoint] >= settings.successes:
                self._until[endpoint] = None

    def tick(self, now: float) -> Sequence[int]:
        """Return the workers whose health check is due."""
        due = [e for e in self._order if now - self._checked[e] >= self._settings.check_interval_s]
        for endpoint in due:
            self._checked[endpoint] = now
        return due

    def probed(self, attempted: Attempted, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Judge a health check."""
        endpoint, settings = attempted.endpoint, self._settings
        if attempted.outcome is Outcome.OK:
            self._checks_failed[endpoint] = 0
            self._checks_passed[endpoint] += 1
            if self._checks_passed[endpoint] >= settings.check_successes:
                self._healthy[endpoint] = True
        else:
            self._checks_passed[endpoint] = 0
            self._checks_failed[endpoint] += 1
            if self._checks_failed[endpoint] >= settings.check_failures:
                self._healthy[endpoint] = False
