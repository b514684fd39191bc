"""LiteLLM's router: deployments in configured `order`, cooled down for a few seconds when they fail.

Published defaults of LiteLLM 1.106 (2026-11; docs "Retries, fallbacks and cooldowns", "Configuration and defaults" and
`router_utils/cooldown_handlers.py`): a deployment cools for `cooldown_s` = 5 s, or for the Retry-After it was given,
when more than half of at least 5 requests of the current minute failed or more than `allowed_fails` = 3 did; at once on
429, 401, 404 and 408 (a timeout). Two retries that skip deployments which failed this request. A retry waits only when
no other deployment is ready: Retry-After up to 60 s, else 0.5 s doubled up to 8 s, plus up to 0.75 s of jitter (this
form matches the 4.6 s that three such waits took when measured). A request may take 600 s.

Where the documentation is silent: the minute is the clock's; a stream that breaks counts as a failure and is not sent
again; with every deployment cooling the router refuses ("No deployments available"), as the product does. Measured,
the same version never cooled a deployment that was alone in its `order` for 5xx; the documented rule taken here treats
it better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SILENT, Baseline, Settings, may_retry

_AT_ONCE = frozenset({Outcome.RATE_LIMITED, Outcome.AUTH_ERROR, Outcome.TIMEOUT})
_LONGEST_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteLLMSettings(Settings):
    """See the module's docstring."""

    failed_share: float = 0.5
    min_requests: int = 5
    allowed_fails: int = 3
    cooldown_s: float = 5.0
    retries: int = 2
    first_wait_s: float = 0.5
    max_wait_s: float = 8.0
    jitter: float = 0.75
    attempt_timeout_s: float = 600.0
    stall_timeout_s: float = 600.0


class LiteLLM(Baseline):
    """See the module's docstring."""

    name = "litellm"

    def __init__(self, endpoints: int, settings: LiteLLMSettings) -> None:
        super().__init__(endpoints, settings, attempts=1 + settings.retries)
        self._settings = settings
        self._until = [0.0] * endpoints
        self._minute = [0] * endpoints
        self._total = [0] * endpoints
        self._fails = [0] * endpoints

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the first deployment that neither cools nor failed this request; then one that failed it."""
        again = None
        for endpoint in self._order:
            if self._until[endpoint] <= now:
                if endpoint not in tried:
                    return endpoint
                if again is None:
                    again = endpoint
        return again

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Retry at once elsewhere, or wait where nothing else is ready."""
        settings = self._settings
        if not may_retry(made, settings.retries):
            return None
        failed = {attempted.endpoint for attempted in made}
        if any(self._until[endpoint] <= now and endpoint not in failed for endpoint in self._order):
            return 0.0
        retry_after_s = made[-1].retry_after_s
        if retry_after_s is not None and 0 < retry_after_s <= _LONGEST_RETRY_AFTER_S:
            return retry_after_s
        return min(settings.first_wait_s * 2.0 ** (len(made) - 1), settings.max_wait_s) + settings.jitter * draw

    def finished(self, attempted: Attempted, now: float) -> None:
        """Count in the current minute and cool when a rule says so; a new failure starts the cooldown anew."""
        outcome, endpoint, settings = attempted.outcome, attempted.endpoint, self._settings
        if outcome in SILENT:
            return
        minute = int(now // 60)
        if minute != self._minute[endpoint]:
            self._minute[endpoint], self._total[endpoint], self._fails[endpoint] = minute, 0, 0
        self._total[endpoint] += 1
        if outcome is Outcome.OK:
            return
        self._fails[endpoint] += 1
        fails, total = self._fails[endpoint], self._total[endpoint]
        if (
            outcome in _AT_ONCE
            or fails > settings.allowed_fails
            or (total >= settings.min_requests and fails / total > settings.failed_share)
        ):
            wait_s = attempted.retry_after_s if attempted.retry_after_s is not None else settings.cooldown_s
            self._until[endpoint] = now + wait_s
