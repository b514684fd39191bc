"""The forecaster in the arena and in replays: in front of routecast's engine, and as a gate before another policy.

The rule of this file: what the scoring process does each second, by the same functions and without the process: the
features of the windows, the risks a model may speak of, alarms that begin and end, and the share each leaves. The loop
is closed: a policy that left an endpoint also sees less of it. The gate keeps a policy away from endpoints at risk as
long as others are known to serve, and leaves to the policy's own retries what those mend.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cache
from math import inf
from random import Random

import numpy as np
import numpy.typing as npt

from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.outcomes import Outcome
from routing.policy import Policy as RoutingPolicy
from routing.window import Window
from scoring.acting import EXPLORE, FLOOR, AlarmDesk, share_kept
from scoring.artifact import Model, load
from scoring.features import FEATURES, Group, Member, matrix
from scoring.registry import PRIOR
from scoring.scorer import risks_of
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted, Policy
from sim.policies.routecast import heard_of

_Floats = npt.NDArray[np.float64]
_TICK_S = 1.0
# Ticks of a virtual clock come a rounding apart.
_ROUNDING_S = 1e-6
# How long failures that came at once keep a gate shut, for each in a row.
_SHUT_PER_FAILURE_S = 1.0
_FAILURES = np.array([feature.group is Group.FAILURES for feature in FEATURES])
# What a retry does not mend, or should not try to.
_UNMENDED = np.array([feature.name in {"timeouts_60s", "limited_60s"} for feature in FEATURES])


@cache
def shipped() -> Model:
    """Return the model that ships with the package. Raises ArtifactError."""
    return load(PRIOR)


class ArenaForecaster:
    """Forecasts for all endpoints, once a second. `model` is the shipped one by default; `explore` is the share in
    [0, 1] of alarms that act on a canary share only, drawn from `seed`.
    """

    def __init__(
        self, endpoints: Sequence[ArenaEndpoint], model: Model | None = None, seed: int = 0, explore: float = EXPLORE
    ) -> None:
        self.model = model or shipped()
        self._ids = [endpoint.id for endpoint in endpoints]
        self._members = [Member(endpoint.provider, endpoint.region) for endpoint in endpoints]
        self._providers = [endpoint.provider for endpoint in endpoints]
        self._desk = AlarmDesk(explore)
        self._rng = Random(seed)
        self._last_tick = 0

    def __call__(self, engine: Engine, now: float) -> Forecasts | None:
        """Return what the engine hears in a new second, None between two."""
        tick = int((now + _ROUNDING_S) / _TICK_S)
        if tick <= self._last_tick:
            return None
        self._last_tick = tick
        manifest = self.model.manifest
        threshold = engine.policy.forecast.threshold or manifest.threshold
        rows = self.features([engine.window_of(name) for name in self._ids], now)
        risks, kept = {}, {}
        for name, risk in zip(self._ids, self.risks(rows), strict=True):
            alarm = self._desk.step(name, risk, threshold, now, self._rng.random())
            if risk is not None:
                risks[name] = risk
                if alarm is not None:
                    kept[name] = share_kept(risk, threshold, FLOOR, alarm.mode)
        return Forecasts(now, manifest.version, threshold, risks, kept)

    def features(self, windows: Sequence[Window], now: float) -> _Floats:
        """Return a row of features per window, in the order of the endpoints (n × features)."""
        return matrix(self._members, windows, now)

    def beside_failures(self, rows: _Floats) -> _Floats:
        """Return what the rows of `features` would be without the failures; as they are for an endpoint where more
        attempts than usual timed out or met a rate limit in the last minute.
        """
        mended = (rows[:, _UNMENDED] <= 0.0).all(axis=1, keepdims=True)
        return np.where(mended & _FAILURES, self.model.forecaster.domain.normal, rows)

    def risks(self, rows: _Floats) -> list[float | None]:
        """Return a risk per row, in the order of the endpoints; None for one that cannot be judged."""
        return risks_of(self.model, rows, self._providers)


class ForecastGate(Policy):
    """Another policy behind a gate of forecasts. Where `consider` is given, it is told the endpoints whose gate is open
    whenever they change.
    """

    def __init__(
        self,
        inner: Policy,
        endpoints: Sequence[ArenaEndpoint],
        name: str,
        consider: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self.name = name
        self.stall_timeout_s, self.probe_timeout_s = inner.stall_timeout_s, inner.probe_timeout_s
        self.tick_s, self.limits = inner.tick_s, inner.limits
        self._inner = inner
        self._consider = consider
        self._policy = RoutingPolicy()
        self._windows = [Window() for _ in endpoints]
        self._failed_at = [-inf] * len(endpoints)
        self._forecaster = ArenaForecaster(endpoints)
        self._next = _TICK_S
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
        window = self._windows[attempted.endpoint]
        failures = window.consecutive_failures
        is_ok = attempted.outcome is Outcome.OK and attempted.ttft_s is not None
        window.finished(
            attempted.attempt_id,
            heard_of(attempted, window, self._policy, now),
            now,
            ttft_s=attempted.ttft_s if is_ok else None,
            output_tokens=attempted.output_tokens if is_ok else 0,
            generation_s=attempted.latency_s - (attempted.ttft_s or 0.0) if is_ok else 0.0,
        )
        if window.consecutive_failures > failures:
            self._failed_at[attempted.endpoint] = now
        self._inner.finished(attempted, now)

    def tick(self, now: float) -> Sequence[int]:
        """Open and shut the gate; return what the policy wants probed."""
        if now >= self._next:
            self._next = now - now % _TICK_S + _TICK_S
            shut = self._alarmed(now)
            if shut != self._shut:
                self._shut = shut
                if self._consider is not None:
                    self._consider([e for e in range(len(self._windows)) if e not in shut])
        return self._inner.tick(now)

    def _alarmed(self, now: float) -> frozenset[int]:
        """Return the endpoints to keep away from; none when no other is known to serve.

        An alarm that rests on failures alone counts while the endpoint is failing, a second for each in a row. After
        that it is the policy's own affair: what fails at once costs it a retry, and staying away costs what the others
        are slower by for as long as the risk lasts. There is no hysteresis: a balanced policy has no majority that
        could swing.
        """
        forecaster, threshold = self._forecaster, self._forecaster.model.manifest.threshold
        rows = forecaster.features(self._windows, now)
        alarmed = {e for e, risk in enumerate(forecaster.risks(rows)) if risk is not None and risk >= threshold}
        if alarmed:
            beside = forecaster.risks(forecaster.beside_failures(rows))
            alarmed = {e for e in alarmed if (beside[e] or 0.0) >= threshold or self._is_failing(e, now)}
        others = [window for e, window in enumerate(self._windows) if e not in alarmed]
        serving = any(window.last_ok_at > 0.0 and not window.consecutive_failures for window in others)
        return frozenset(alarmed) if serving else frozenset()

    def _is_failing(self, endpoint: int, now: float) -> bool:
        failures = self._windows[endpoint].consecutive_failures
        return now - self._failed_at[endpoint] < failures * _SHUT_PER_FAILURE_S

    def probed(self, attempted: Attempted, now: float) -> None:
        """Tell the policy."""
        self._inner.probed(attempted, now)

    def warned(self) -> Collection[int]:
        """Return where the gate is shut."""
        return self._shut
