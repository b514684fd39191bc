"""The shipped forecaster in the arena: in front of routecast's engine, and as a gate before another policy.

It reads the same windows by the same features as the scoring process does, once a second. The gate keeps a policy away
from endpoints at risk, as long as others are left, and until their risk has fallen well below the threshold; the policy
itself does not know of it.
"""

from collections.abc import Collection, Sequence
from functools import cache

from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.outcomes import Outcome
from routing.window import Window
from scoring.alarms import EXIT_RATIO
from scoring.artifact import Model, load
from scoring.features import Member, matrix
from scoring.registry import PRIOR
from scoring.scorer import risks_of
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted, Policy

_EVERY_S = 1.0


@cache
def shipped() -> Model:
    """Return the model that ships with the package. Raises ArtifactError."""
    return load(PRIOR)


class _Pulse:
    """Risks of all endpoints, at most once a second."""

    def __init__(self, endpoints: Sequence[ArenaEndpoint]) -> None:
        self._members = [Member(endpoint.provider, endpoint.region) for endpoint in endpoints]
        self._providers = [endpoint.provider for endpoint in endpoints]
        self._next = _EVERY_S

    def risks(self, windows: Sequence[Window], now: float) -> list[float | None] | None:
        """Return a risk per endpoint, None for one that cannot be judged; nothing before the next second."""
        if now < self._next:
            return None
        self._next = now - now % _EVERY_S + _EVERY_S
        return risks_of(shipped(), matrix(self._members, windows, now), self._providers)


class ShippedForecaster:
    """What the scoring process tells the engine, without the process."""

    def __init__(self, endpoints: Sequence[ArenaEndpoint]) -> None:
        self._ids = [endpoint.id for endpoint in endpoints]
        self._pulse = _Pulse(endpoints)

    def __call__(self, engine: Engine, now: float) -> Forecasts | None:
        """Return the forecasts of a new second."""
        risks = self._pulse.risks([engine.window_of(name) for name in self._ids], now)
        if risks is None:
            return None
        known = {name: risk for name, risk in zip(self._ids, risks, strict=True) if risk is not None}
        manifest = shipped().manifest
        return Forecasts(now, manifest.version, manifest.threshold, known)


class ForecastGate(Policy):
    """Another policy behind a gate of forecasts."""

    def __init__(self, inner: Policy, endpoints: Sequence[ArenaEndpoint], name: str) -> None:
        self.name = name
        self.stall_timeout_s, self.probe_timeout_s = inner.stall_timeout_s, inner.probe_timeout_s
        self.tick_s, self.limits = inner.tick_s, inner.limits
        self._inner = inner
        self._windows = [Window() for _ in endpoints]
        self._pulse = _Pulse(endpoints)
        self._shut: frozenset[int] = frozenset()

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Ask the policy as if the request had been tried where the gate is shut; without the gate when nobody is
        left.
        """
        closed = [endpoint for endpoint in self._shut if endpoint not in tried]
        chosen = self._inner.route(request, [*tried, *closed], now, draw) if closed else None
        return chosen if chosen is not None else self._inner.route(request, tried, now, draw)

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        """Be as patient as the policy."""
        return self._inner.patience_s(request, tried, now)

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """Retry as the policy does."""
        return self._inner.retry(request, made, now, draw)

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Tell both."""
        self._windows[endpoint].started(attempt_id, now)
        self._inner.started(endpoint, attempt_id, now)

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Tell both."""
        self._windows[endpoint].first_byte(attempt_id, now)
        self._inner.first_token(endpoint, attempt_id, now)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Tell both; the window takes a latency only with a success."""
        is_ok = attempted.outcome is Outcome.OK and attempted.ttft_s is not None
        self._windows[attempted.endpoint].finished(
            attempted.attempt_id,
            attempted.outcome,
            now,
            ttft_s=attempted.ttft_s if is_ok else None,
            output_tokens=attempted.output_tokens if is_ok else 0,
            generation_s=attempted.latency_s - (attempted.ttft_s or 0.0) if is_ok else 0.0,
        )
        self._inner.finished(attempted, now)

    def tick(self, now: float) -> Sequence[int]:
        """Open and shut the gate; return what the policy wants probed."""
        risks = self._pulse.risks(self._windows, now)
        if risks is not None:
            threshold = shipped().manifest.threshold
            self._shut = frozenset(
                endpoint
                for endpoint, risk in enumerate(risks)
                if risk is not None and risk >= (threshold * EXIT_RATIO if endpoint in self._shut else threshold)
            )
        return self._inner.tick(now)

    def probed(self, attempted: Attempted, now: float) -> None:
        """Tell the policy."""
        self._inner.probed(attempted, now)

    def warned(self) -> Collection[int]:
        """Return where the gate is shut."""
        return self._shut
