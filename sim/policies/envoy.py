"""Envoy's outlier detection over one priority level per endpoint, with one retry on the next level.

Published defaults of Envoy 1.40 (2026-11; `OutlierDetection` and `RetryPolicy` of the v3 API): ejected after 5
consecutive 5xx or local-origin errors, for 30 s × times ejected, at most 300 s, returned by a sweep every 10 s; the
multiplier falls by one for each sweep in service. At most 10 % of the hosts, but at least one, are out at once. Each
sweep also judges success rates: with at least 5 hosts of at least 100 requests since the last one, those below
mean − 1.9 σ are ejected. One retry with full jitter over 25 ms; the route's 15 s include it, and when they end nothing
is retried. A stream may pause for 300 s.

Where a default does not decide: a priority level per endpoint and a retry on the next one (`previous_priorities`) are
how Envoy's AI gateways order providers; retries on 5xx, refused connections and 429. Consequences of the defaults: a
429 is no 5xx and ejects nobody; a stream that breaks has answered 200; panic (below 50 % of healthy hosts) is judged
over all levels, so that with one host each it means that everybody is out, and then the order alone decides. The 15 s
are applied as the wait for the first token, which favours Envoy: the product would also cut longer answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import REFUSALS, SERVER_FAULTS, SILENT, Baseline, Settings, may_retry


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings(Settings):
    """See the module's docstring. `deviations` is the factor of σ."""

    consecutive_5xx: int = 5
    interval_s: float = 10.0
    base_ejection_s: float = 30.0
    max_ejection_s: float = 300.0
    max_ejection_share: float = 0.1
    min_hosts: int = 5
    min_requests: int = 100
    deviations: float = 1.9
    retries: int = 1
    backoff_s: float = 0.025
    attempt_timeout_s: float = 15.0
    stall_timeout_s: float = 300.0


class Envoy(Baseline):
    """See the module's docstring."""

    name = "envoy"

    def __init__(self, endpoints: int, settings: EnvoySettings) -> None:
        super().__init__(endpoints, settings, attempts=1 + settings.retries)
        self.tick_s = settings.interval_s
        self._settings = settings
        self._failures = [0] * endpoints
        self._ejected_at: list[float | None] = [None] * endpoints
        self._times = [0] * endpoints
        self._total = [0] * endpoints
        self._succeeded = [0] * endpoints

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Return the first level in service that was not tried; without one, the first not tried, or the primary."""
        left = None
        for endpoint in self._order:
            if endpoint not in tried:
                if self._ejected_at[endpoint] is None:
                    return endpoint
                if left is None:
                    left = endpoint
        return 0 if left is None else left

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """Retry within the route's timeout, after full jitter over an interval that doubles."""
        settings, outcome = self._settings, made[-1].outcome
        if not may_retry(made, settings.retries) or outcome in (Outcome.TIMEOUT, Outcome.AUTH_ERROR, Outcome.MALFORMED):
            return None
        wait_s = draw * settings.backoff_s * (2.0 ** len(made) - 1)
        return wait_s if now + wait_s < request.time + settings.attempt_timeout_s else None

    def finished(self, attempted: Attempted, now: float) -> None:
        """Count 5xx in a row; the fifth ejects at once, if the share allows it."""
        outcome, endpoint = attempted.outcome, attempted.endpoint
        if outcome in SILENT:
            return
        self._total[endpoint] += 1
        if outcome not in SERVER_FAULTS or attempted.ttft_s is not None:
            self._succeeded[endpoint] += outcome not in REFUSALS
            self._failures[endpoint] = 0
            return
        self._failures[endpoint] += 1
        if self._failures[endpoint] >= self._settings.consecutive_5xx:
            self._failures[endpoint] = 0
            self._eject(endpoint, now)

    def tick(self, now: float) -> Sequence[int]:
        """Sweep: bring back whose time is over, and judge success rates."""
        settings = self._settings
        for endpoint in self._order:
            ejected_at = self._ejected_at[endpoint]
            if ejected_at is None:
                self._times[endpoint] = max(0, self._times[endpoint] - 1)
            elif now >= ejected_at + min(settings.base_ejection_s * self._times[endpoint], settings.max_ejection_s):
                self._ejected_at[endpoint] = None
                self._failures[endpoint] = 0
        self._judge_rates(now)
        self._total = [0] * self._count
        self._succeeded = [0] * self._count
        return ()

    def _judge_rates(self, now: float) -> None:
        settings = self._settings
        rates = {e: self._succeeded[e] / n for e, n in enumerate(self._total) if n >= max(1, settings.min_requests)}
        if not rates or len(rates) < settings.min_hosts:
            return
        mean = sum(rates.values()) / len(rates)
        deviation = sqrt(sum((rate - mean) ** 2 for rate in rates.values()) / len(rates))
        for endpoint, rate in rates.items():
            if rate < mean - settings.deviations * deviation:
                self._eject(endpoint, now)

    def _eject(self, endpoint: int, now: float) -> None:
        if self._ejected_at[endpoint] is not None:
            return
        out = sum(ejected_at is not None for ejected_at in self._ejected_at)
        if out == 0 or (out + 1) / self._count <= self._settings.max_ejection_share:
            self._ejected_at[endpoint] = now
            self._times[endpoint] += 1
