"""Helicone's AI gateway: power of two choices by Peak-EWMA among providers whose recent error share is small.

Published defaults (source of `ai-gateway`, 2026): a provider is removed while more than 10 % of at least 20 requests
of the last 60 s were answered by a 5xx, judged by a monitor every 5 s; Peak-EWMA with a decay of 30 s; a rate-limited
provider is removed for its Retry-After. Retries are off unless configured. Balanced: no endpoint is preferred.

Where the source left a choice: a timeout and a refused connection count as 5xx, a stream that breaks does not; without
a Retry-After a rate limit lasts 30 s; an unheard provider is taken to need 1 s; requests time out after 60 s; with no
provider left the gateway refuses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SERVER_FAULTS, SILENT, Baseline, Settings
from sim.policies.load import PeakEwma
from sim.policies.windows import SlidingCount


@dataclass(frozen=True, slots=True, kw_only=True)
class HeliconeSettings(Settings):
    """See the module's docstring."""

    error_share: float = 0.1
    min_requests: int = 20
    window_s: float = 60.0
    interval_s: float = 5.0
    decay_s: float = 30.0
    default_latency_s: float = 1.0
    rate_limit_s: float = 30.0
    attempt_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0


class Helicone(Baseline):
    """See the module's docstring."""

    name = "helicone"

    def __init__(self, endpoints: int, settings: HeliconeSettings) -> None:
        super().__init__(endpoints, settings)
        self.tick_s = settings.interval_s
        self._settings = settings
        self._load = PeakEwma(endpoints, settings.decay_s, settings.default_latency_s)
        self._recent = [SlidingCount(settings.window_s) for _ in range(endpoints)]
        self._healthy = [True] * endpoints
        self._limited_until = [0.0] * endpoints

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the cheaper of two providers in service."""
        ready = [e for e in self._order if self._healthy[e] and self._limited_until[e] <= now]
        return self._load.choose(ready, now, draw) if ready else None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Count it as pending."""
        self._load.sent(endpoint, attempt_id, now)

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Measure the time to answer."""
        self._load.answered(endpoint, attempt_id, now)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Count it for the monitor; a rate limit takes the provider out at once."""
        endpoint, outcome = attempted.endpoint, attempted.outcome
        self._load.ended(endpoint, attempted.attempt_id, now)
        if outcome in SILENT:
            return
        failed = outcome in SERVER_FAULTS and attempted.ttft_s is None
        self._recent[endpoint].add(now, failed=failed)
        if outcome is Outcome.RATE_LIMITED:
            wait_s = attempted.retry_after_s
            self._limited_until[endpoint] = now + (self._settings.rate_limit_s if wait_s is None else wait_s)

    def tick(self, now: float) -> Sequence[int]:
        """Run the monitor."""
        for endpoint, recent in enumerate(self._recent):
            recent.advance(now)
            enough = recent.total >= max(1, self._settings.min_requests)
            self._healthy[endpoint] = not enough or recent.failed / recent.total <= self._settings.error_share
        return ()
