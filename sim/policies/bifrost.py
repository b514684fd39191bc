"""Bifrost's adaptive load balancing: weights recomputed every 5 s from errors, latency and utilisation.

Published ("historic") numbers of Bifrost Enterprise (documentation of 2026, "Adaptive load balancing"): penalty =
0.5 × errors + 0.2 × latency + 0.05 × utilisation − momentum; degraded above 2 % errors, failed above 5 %; healthy again
below 2 % with at least half of the expected traffic; 25 % exploration; an error's penalty loses 90 % in 30 s. A request
times out after 30 s; fallbacks are tried in turn.

Where the documentation is silent (the formulas are not published): errors = the share of the last 5 s, never less than
its own decayed past; latency = moving average above the fastest peer's, as a fraction of it up to 1; utilisation = own
share of requests; momentum = half of what the error share improved since the last recomputation; weight = 1 − penalty,
halved while degraded, 0 while failed (a failed route returns as its penalty decays). Exploration is uniform among
routes that have not failed. Failures and rate limits count as errors; with all routes failed the choice is uniform.
Every endpoint is tried once per request, at once. Balanced: no endpoint is preferred.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SILENT, Baseline, Settings, may_retry

_SMOOTHING = 0.3
_DECADE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BifrostSettings(Settings):
    """See the module's docstring."""

    recompute_s: float = 5.0
    error_weight: float = 0.5
    latency_weight: float = 0.2
    utilisation_weight: float = 0.05
    momentum_weight: float = 0.5
    degraded_share: float = 0.02
    failed_share: float = 0.05
    expected_share: float = 0.5
    exploration_share: float = 0.25
    attempt_timeout_s: float = 30.0
    stall_timeout_s: float = 30.0


class _State(Enum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"


class Bifrost(Baseline):
    """See the module's docstring."""

    name = "bifrost"

    def __init__(self, endpoints: int, settings: BifrostSettings) -> None:
        super().__init__(endpoints, settings, attempts=endpoints)
        self.tick_s = settings.recompute_s
        self._settings = settings
        self._state = [_State.HEALTHY] * endpoints
        self._errors = [0.0] * endpoints
        self._latency_s: list[float | None] = [None] * endpoints
        self._weight = [1.0] * endpoints
        self._forget()

    def _forget(self) -> None:
        self._total = [0] * self._count
        self._failed = [0] * self._count

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Explore with the first quarter of the draw, follow the weights with the rest."""
        left = [e for e in self._order if e not in tried] if tried else self._order
        if not left:
            return None
        explored = self._settings.exploration_share
        weights = [self._weight[e] for e in left]
        if draw < explored:
            weights = [1.0 if weight > 0 else 0.0 for weight in weights]
            draw /= explored
        else:
            draw = (draw - explored) / (1 - explored)
        total = sum(weights)
        if total <= 0:
            return left[int(draw * len(left))]
        mark = draw * total
        chosen = left[0]
        for endpoint, weight in zip(left, weights, strict=True):
            if weight > 0:
                chosen = endpoint
                mark -= weight
                if mark < 0:
                    break
        return chosen

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Fall back at once while an endpoint is left."""
        return 0.0 if may_retry(made, self._count - 1) else None

    def finished(self, attempted: Attempted, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Count towards the next recomputation."""
        endpoint = attempted.endpoint
        if attempted.outcome in SILENT:
            return
        self._total[endpoint] += 1
        if attempted.outcome is not Outcome.OK:
            self._failed[endpoint] += 1
        elif attempted.ttft_s is not None:
            old_s = self._latency_s[endpoint]
            new_s = attempted.ttft_s
            self._latency_s[endpoint] = new_s if old_s is None else old_s + _SMOOTHING * (new_s - old_s)

    def tick(self, now: float) -> Sequence[int]:  # noqa: ARG002  # the protocol's signature
        """Recompute states and weights."""
        settings = self._settings
        known = [latency_s for latency_s in self._latency_s if latency_s is not None]
        fastest_s = min(known, default=0.0)
        requests = sum(self._total)
        for endpoint in self._order:
            before, total = self._errors[endpoint], self._total[endpoint]
            seen = self._failed[endpoint] / total if total else 0.0
            errors = max(seen, before * 10.0 ** (-settings.recompute_s / _DECADE_S))
            self._errors[endpoint] = errors
            self._state[endpoint] = state = self._next_state(endpoint, errors, requests)
            latency_s = self._latency_s[endpoint]
            slower = min(1.0, latency_s / fastest_s - 1.0) if latency_s is not None and fastest_s > 0 else 0.0
            penalty = (
                settings.error_weight * errors
                + settings.latency_weight * slower
                + settings.utilisation_weight * (total / requests if requests else 0.0)
                - settings.momentum_weight * max(0.0, before - errors)
            )
            weight = min(1.0, max(0.0, 1.0 - penalty))
            share = {_State.HEALTHY: 1.0, _State.DEGRADED: 0.5, _State.FAILED: 0.0}[state]
            self._weight[endpoint] = weight * share
        self._forget()
        return ()

    def _next_state(self, endpoint: int, errors: float, requests: int) -> _State:
        settings = self._settings
        if errors > settings.failed_share:
            return _State.FAILED
        if errors > settings.degraded_share:
            return _State.DEGRADED
        if self._state[endpoint] is _State.HEALTHY:
            return _State.HEALTHY
        expected = requests / self._count
        trusted = requests > 0 and self._total[endpoint] >= settings.expected_share * expected
        return _State.HEALTHY if trusted and errors < settings.degraded_share else _State.DEGRADED
