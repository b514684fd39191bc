"""Routecast itself: the production engine, driven as the service drives it, so that the scorecard judges what ships.

Decisions come from `routing.pipeline.decide` on the engine's snapshot, retries from `routing.attempts`, and every
observation goes in as `service.router` and `service.walk` hand it in: a latency only with a success, endpoints tried
are excluded, a probe's latency stays out of the windows, one probe per endpoint at a time, given up after 5 s, and a
tick every 0.25 s. Requests carry no session id, as a caller who does not ask for affinity.

The limit on a first byte (`routing.attempts.first_byte_timeout_s`) never falls below `ttft_timeout_s` under the default
policy, since three such waits and the reserve fit in the deadline; a policy for which that does not hold is refused.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf

from routing.actions import Action, Finished, Probe
from routing.attempts import RequestBudget, refusal_to_retry
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.model import Capability, Catalogue, Endpoint, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from routing.policy import Policy as RoutingPolicy
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted
from sim.policies.base import ParameterError

MODEL = "arena"
_PROBE_TIMEOUT_S = 5.0
_TICK_S = 0.25

Forecaster = Callable[[Engine, float], Forecasts | None]
"""What a forecasting policy adds: called before each tick with the engine, whose windows it may read, and the time."""


class Routecast:
    """The engine as a policy; with a `forecaster`, the engine and its forecasts."""

    def __init__(
        self,
        endpoints: Sequence[ArenaEndpoint],
        policy: RoutingPolicy | None = None,
        forecaster: Forecaster | None = None,
        name: str = "routecast-reflex",
    ) -> None:
        policy = policy or RoutingPolicy()
        attempts = policy.attempts
        if attempts.max_attempts * attempts.ttft_timeout_s + attempts.reserve_s > attempts.deadline_s:
            raise ParameterError(
                f"attempts.deadline_s = {attempts.deadline_s!r}: expected room for max_attempts × ttft_timeout_s "
                f"and reserve_s, as the arena gives every attempt the same patience"
            )
        self.name = name
        self.attempt_timeout_s = attempts.ttft_timeout_s
        self.stall_timeout_s = attempts.stall_timeout_s
        self.tick_s = _TICK_S
        self.engine = Engine(_catalogue(endpoints), policy, 0.0)
        self._attempts = attempts
        self._forecaster = forecaster
        self._ids = [endpoint.id for endpoint in endpoints]
        self._index = {endpoint_id: i for i, endpoint_id in enumerate(self._ids)}
        self._first = RouteRequest(MODEL)
        self._probing: dict[int, tuple[str, float]] = {}
        self._probes = 0

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:  # noqa: ARG002  # the protocol's signature
        """Decide on the current snapshot."""
        asked = self._first
        if tried:
            asked = replace(asked, excluded=frozenset(self._ids[i] for i in tried))
        chosen = decide(self.engine.snapshot, asked, now, draw).chosen
        return None if chosen is None else self._index[chosen.facts.endpoint.id]

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Go on at once unless the discipline of attempts refuses."""
        last = made[-1]
        budget = RequestBudget(request.time + self._attempts.deadline_s, request.idempotent)
        emitted = last.ttft_s is not None
        return None if refusal_to_retry(last.outcome, len(made), emitted, budget, self._attempts, now) else 0.0

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Tell the engine."""
        self.engine.started(self._ids[endpoint], attempt_id, now)

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Tell the engine."""
        self.engine.first_byte(self._ids[endpoint], attempt_id)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Tell the engine; a latency only with a success."""
        endpoint_id, outcome, ttft_s = self._ids[attempted.endpoint], attempted.outcome, attempted.ttft_s
        if outcome is not Outcome.OK:
            result = Finished(endpoint_id, attempted.attempt_id, outcome, retry_after_s=attempted.retry_after_s)
        else:
            result = Finished(
                endpoint_id,
                attempted.attempt_id,
                outcome,
                ttft_s=ttft_s,
                reply_s=attempted.latency_s if ttft_s is None else None,
                output_tokens=attempted.output_tokens,
                generation_s=0.0 if ttft_s is None else attempted.latency_s - ttft_s,
            )
        self.engine.finished(result, now)

    def tick(self, now: float) -> Sequence[int]:
        """Give up on slow probes, hear the forecaster, let the engine tick; return what it wants probed."""
        for endpoint, (attempt_id, started) in list(self._probing.items()):
            if now - started >= _PROBE_TIMEOUT_S:
                del self._probing[endpoint]
                self.engine.probed(Finished(self._ids[endpoint], attempt_id, Outcome.TIMEOUT), now)
        actions: list[Action] = []
        if self._forecaster is not None and (forecasts := self._forecaster(self.engine, now)) is not None:
            actions += self.engine.forecast(forecasts, now)
        return [self._probe(endpoint, now) for endpoint in self._wanted(actions + self.engine.tick(now))]

    def probed(self, attempted: Attempted, now: float) -> None:
        """Tell the engine, without the probe's latency. The late end of a probe that was given up is ignored: it was
        not sent when the one under way was.
        """
        endpoint = attempted.endpoint
        attempt_id, started = self._probing.get(endpoint, ("", -inf))
        if abs(now - attempted.latency_s - started) < self.tick_s / 2:
            del self._probing[endpoint]
            outcome, retry_after_s = attempted.outcome, attempted.retry_after_s
            self.engine.probed(Finished(self._ids[endpoint], attempt_id, outcome, retry_after_s=retry_after_s), now)

    def warned(self) -> Collection[int]:
        """Return the endpoints whose forecast risk has reached the threshold; none without forecasts."""
        snapshot = self.engine.snapshot
        if snapshot.threshold is None:
            return ()
        risks = ((c.facts.endpoint.id, c.facts.risk) for c in snapshot.candidates(MODEL))
        return [self._index[name] for name, risk in risks if risk is not None and risk >= snapshot.threshold]

    def _wanted(self, actions: Iterable[Action]) -> list[int]:
        wanted = (self._index[action.endpoint.id] for action in actions if isinstance(action, Probe))
        return [endpoint for endpoint in wanted if endpoint not in self._probing]

    def _probe(self, endpoint: int, now: float) -> int:
        self._probes += 1
        attempt_id = f"probe-{self._probes}"
        self._probing[endpoint] = (attempt_id, now)
        self.engine.started(self._ids[endpoint], attempt_id, now)
        return endpoint


def _catalogue(endpoints: Sequence[ArenaEndpoint]) -> Catalogue:
    return Catalogue.of(
        Endpoint(
            id=endpoint.id,
            provider=endpoint.provider,
            region=endpoint.region,
            zone=endpoint.zone,
            model=MODEL,
            provider_model=MODEL,
            order=endpoint.index,
            capabilities=frozenset({Capability.CHAT, Capability.STREAMING}),
            input_usd_per_mtok=endpoint.usd_per_mtok,
            output_usd_per_mtok=endpoint.usd_per_mtok,
        )
        for endpoint in endpoints
    )


def routing_policy(parameters: Mapping[str, float]) -> RoutingPolicy:
    """Return the shipped policy with numbers put in by their names in `RoutingPolicy.thresholds`, as in
    `reflex.error_rate`. Raises ParameterError for a name that is unknown or not a number, PolicyError for a value out
    of range.
    """
    policy = RoutingPolicy()
    numbers = {name for name, value in policy.thresholds().items() if isinstance(value, int | float)}
    for name, value in parameters.items():
        if name not in numbers:
            raise ParameterError(f"policy 'routecast-reflex' has no parameter {name!r}; it has: {sorted(numbers)}")
        group, leaf = name.split(".")
        whole = isinstance(policy.thresholds()[name], int)
        if whole and value != int(value):
            raise ParameterError(f"{name} = {value!r}: expected a whole number")
        changed = replace(getattr(policy, group), **{leaf: int(value) if whole else float(value)})
        policy = replace(policy, **{group: changed})
    return policy
