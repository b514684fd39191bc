"""Routecast itself: the production engine, driven as the service drives it, so that the scorecard judges what ships.

Decisions come from `routing.pipeline.decide` on the engine's snapshot, retries from `routing.attempts`, and every
observation goes in as `service.router`, `service.walk` and `service.probes` hand it in: a latency only with a success,
a timeout that the caller's haste brought about without blame, endpoints tried are excluded, a probe's latency stays out
of the windows, one probe per endpoint at a time, given up after 5 s, and a tick every 0.25 s. Requests carry no session
id, as a caller who does not ask for affinity.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

from routing import reflex
from routing.actions import Action, Finished, Probe
from routing.attempts import (
    Patience,
    RequestBudget,
    crawl_floor_tokens_per_s,
    first_byte_timeout_s,
    is_reroute,
    recovering,
    refusal_to_retry,
    spared_by_retries,
    usual_tokens_per_s,
    wait_s,
)
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.hedging import expected_cost_usd, hedge, in_scope
from routing.model import Capability, Catalogue, Endpoint, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import Decision, decide
from routing.policy import Policy as RoutingPolicy
from routing.window import Window
from scoring.thresholds import changed
from sim.arena.policy import ArenaEndpoint, ArenaRequest, Attempted, Limits, Policy, RetryLimit
from sim.policies.base import ParameterError

MODEL = "arena"
_PROBE_TIMEOUT_S = 5.0
_TICK_S = 0.25


@dataclass(slots=True)
class _Memory:
    """What a request that met a rate limit remembers `until` it ends, of so many attempts `heard`."""

    until: float
    patience: Patience = field(default_factory=Patience)
    heard: int = 0


Forecaster = Callable[[Engine, float], Forecasts | None]
"""What a forecasting policy adds: called before each tick with the engine, whose windows it may read, and the time."""


class Routecast(Policy):
    """The engine as a policy; with a `forecaster`, the engine and its forecasts. Callers do not ask for hedges, as the
    service's do not by default, unless `asks_for_hedges`.
    """

    def __init__(
        self,
        endpoints: Sequence[ArenaEndpoint],
        policy: RoutingPolicy | None = None,
        forecaster: Forecaster | None = None,
        name: str = "routecast-reflex",
        *,
        asks_for_hedges: bool = False,
        make_engine: Callable[[Catalogue, RoutingPolicy, float], Engine] = Engine,
    ) -> None:
        policy = policy or RoutingPolicy()
        self.name = name
        self.stall_timeout_s = policy.attempts.stall_timeout_s
        self.probe_timeout_s = _PROBE_TIMEOUT_S
        self.tick_s = _TICK_S
        paid = policy.budget
        retries = RetryLimit(paid.retry_share, paid.retry_floor_per_s * paid.window_s, paid.window_s)
        self.limits = Limits(max_attempts=policy.attempts.max_attempts, retries=retries)
        self.engine = make_engine(_catalogue(endpoints), policy, 0.0)
        self._attempts = policy.attempts
        self._forecaster = forecaster
        self._asks_for_hedges = asks_for_hedges
        self._ids = [endpoint.id for endpoint in endpoints]
        self._usd_per_token = [endpoint.usd_per_mtok / 1e6 for endpoint in endpoints]
        self._index = {endpoint_id: i for i, endpoint_id in enumerate(self._ids)}
        self._first = RouteRequest(MODEL)
        self._account = self.engine.budgets[MODEL]
        self._next_number = 0
        self._memories: dict[int, _Memory] = {}
        self._hedges_next = False
        self._hedges: set[str] = set()
        self._probing: dict[int, str] = {}
        self._probes = 0

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Decide on the current snapshot."""
        chosen = self.decide(request, tried, now, draw).chosen
        return None if chosen is None else self._index[chosen.facts.endpoint.id]

    def decide(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> Decision:
        """Return the decision on an attempt of a request that was already sent to `tried`."""
        if not tried:
            return decide(self.engine.snapshot, self._first, now, draw)
        memory = self._memories.get(request.number)
        patience = Patience() if memory is None else memory.patience
        spared = frozenset[str]() if patience.has_waited else self._spared(now)
        return self._elsewhere(patience.excluded(self._ids[i] for i in tried), spared, now, draw)

    def _spared(self, now: float) -> frozenset[str]:
        return spared_by_retries(self.engine.snapshot.candidates(MODEL), self.engine.policy.budget, now)

    def _elsewhere(self, excluded: frozenset[str], spared: frozenset[str], now: float, draw: float) -> Decision:
        return decide(self.engine.snapshot, replace(self._first, excluded=excluded, spared=spared), now, draw)

    def wait_s(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        """Wait for a rate limit to end where that is all it takes and a place to wait is free."""
        self._note(request, now)
        decision = self.decide(request, [a.endpoint for a in made], now, draw)
        budget, patience = self._budget(request), self._memory_of(request).patience
        pause_s = wait_s(decision, patience, budget, self.engine.policy.budget, draw)
        if pause_s is None or not self._account.take_place(now + pause_s, now):
            return None
        patience.waited(pause_s, now + pause_s)
        return pause_s

    def _memory_of(self, request: ArenaRequest) -> _Memory:
        return self._memories.setdefault(request.number, _Memory(request.deadline))

    def _hear(self, request: ArenaRequest, made: Sequence[Attempted], now: float) -> None:
        """Remember the rate limits among the attempts that have ended since the last time: two, after a hedge."""
        if request.number not in self._memories and all(a.outcome is not Outcome.RATE_LIMITED for a in made):
            return
        memory = self._memory_of(request)
        for last in made[memory.heard :]:
            memory.patience.failed(self._ids[last.endpoint], last.outcome, last.retry_after_s, now)
        memory.heard = len(made)

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        """Keep some of the deadline for the fallback while another endpoint is left."""
        self._note(request, now)
        others_left = len(self.decide(request, tried, now, 0.0).plan.cumulative) > 1
        return first_byte_timeout_s(self._budget(request), self._attempts, now, streamed=True, others_left=others_left)

    def _note(self, request: ArenaRequest, now: float) -> None:
        """Feed the retry budget, once for each request; they arrive in the order of their numbers."""
        if request.number >= self._next_number:
            self._next_number = request.number + 1
            self._account.requested(now)

    def hedge_after_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float | None:
        """Ask the core's rule."""
        if not in_scope(self.engine.policy.hedge, asked=self._asks_for_hedges):
            return None
        decision = self.decide(request, tried[:-1], now, 0.0)
        chosen_id = self._ids[tried[-1]]
        (chosen,) = (c.candidate for c in decision.considered if c.candidate.facts.endpoint.id == chosen_id)
        return hedge(
            replace(decision, chosen=chosen),
            self.engine.snapshot,
            self.engine.window_of(chosen_id),
            self.engine.policy,
            idempotent=request.idempotent,
            asked=self._asks_for_hedges,
            streamed=True,
        ).delay_s

    def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Choose among those that are neither tried nor recovering, if the budget pays."""
        if len(tried) >= self._attempts.max_attempts or now >= self._budget(request).deadline:
            return None
        spared = recovering(self.engine.snapshot.candidates(MODEL))
        decision = self._elsewhere(frozenset(self._ids[i] for i in tried), spared, now, draw)
        if decision.chosen is None or decision.panic:
            return None
        endpoint = decision.chosen.facts.endpoint
        cost_usd = expected_cost_usd(endpoint, decision.request, self._account.usual_output_tokens)
        if self._account.take_hedge(cost_usd, now):
            return None
        self._hedges_next = True
        return self._index[endpoint.id]

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Go on at once unless the discipline of attempts refuses."""
        last = made[-1]
        emitted, budget = last.ttft_s is not None, self._budget(request)
        if refusal_to_retry(last.outcome, len(made), emitted, budget, self._attempts, now):
            return None
        self._hear(request, made, now)
        return 0.0 if self.is_reroute(made, now) or self._account.take_retry(now) else None

    def is_reroute(self, made: Sequence[Attempted], now: float) -> bool:
        """See `routing.attempts.is_reroute`."""
        failed = [self._ids[attempted.endpoint] for attempted in made]
        decision = self._elsewhere(frozenset(failed), self._spared(now), now, 0.0)
        return decision.chosen is not None and is_reroute(decision, failed[-1])

    def _budget(self, request: ArenaRequest) -> RequestBudget:
        return RequestBudget(min(request.deadline, request.time + self._attempts.deadline_s), request.idempotent)

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Tell the engine."""
        if self._hedges_next:
            self._hedges.add(attempt_id)
            self._hedges_next = False
        self.engine.started(self._ids[endpoint], attempt_id, now)

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        """Tell the engine."""
        self.engine.first_byte(self._ids[endpoint], attempt_id, now)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Tell the engine; a latency only with a success, or with an attempt that its hedge outran."""
        endpoint_id, outcome, ttft_s = self._ids[attempted.endpoint], attempted.outcome, attempted.ttft_s
        is_hedge = attempted.attempt_id in self._hedges
        self._hedges.discard(attempted.attempt_id)
        if outcome is Outcome.CANCELLED:
            waited_s = None if is_hedge else attempted.latency_s
            result = Finished(endpoint_id, attempted.attempt_id, outcome, ttft_s=waited_s)
        elif outcome is not Outcome.OK:
            heard = heard_of(attempted, self.engine.window_of(endpoint_id), self.engine.policy, now)
            result = Finished(endpoint_id, attempted.attempt_id, heard, retry_after_s=attempted.retry_after_s)
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
            self._account.served(
                attempted.output_tokens * self._usd_per_token[attempted.endpoint], attempted.output_tokens, now
            )
        self.engine.finished(result, now)

    def tick(self, now: float) -> Sequence[int]:
        """Hear the forecaster, let the engine tick; return what it wants probed and is not being probed."""
        actions: list[Action] = []
        self._forget(now)
        if self._forecaster is not None and (forecasts := self._forecaster(self.engine, now)) is not None:
            actions += self.engine.forecast(forecasts, now)
        return [self._probe(endpoint, now) for endpoint in self._wanted(actions + self.engine.tick(now))]

    def _forget(self, now: float) -> None:
        """Drop what requests remembered that have ended; the order is nearly that of their deadlines."""
        ended = list(takewhile(lambda number: self._memories[number].until < now, self._memories))
        for number in ended:
            del self._memories[number]

    def probed(self, attempted: Attempted, now: float) -> None:
        """Tell the engine, without the probe's latency."""
        endpoint_id, attempt_id = self._ids[attempted.endpoint], self._probing.pop(attempted.endpoint)
        result = Finished(endpoint_id, attempt_id, attempted.outcome, retry_after_s=attempted.retry_after_s)
        self.engine.probed(result, now)

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
        self._probing[endpoint] = attempt_id
        self.engine.started(self._ids[endpoint], attempt_id, now, streamed=False)
        return endpoint


def heard_of(attempted: Attempted, window: Window, policy: RoutingPolicy, now: float) -> Outcome:
    """Return what the health of an endpoint hears of an attempt, `window` being the endpoint's.

    What a caller's deadline cut short says nothing of the endpoint, unless the wait for the first token was long by the
    endpoint's own standards, or the stream crawled: the service would have cut it before the caller did.
    """
    outcome, attempts = attempted.outcome, policy.attempts
    if outcome is not Outcome.TIMEOUT:
        return outcome
    if attempted.ttft_s is not None:
        floor = crawl_floor_tokens_per_s(attempts, usual_tokens_per_s(window, now), can_move=True)
        is_blamed = (attempted.tokens_per_s or 0.0) < floor
    else:
        limit_s = reflex.blame_after_s(window, policy, now, streamed=True)
        is_blamed = attempted.latency_s >= min(limit_s, attempts.ttft_timeout_s)
    return outcome if is_blamed else Outcome.CANCELLED


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


def routing_policy(name: str, parameters: Mapping[str, float]) -> RoutingPolicy:
    """Return the shipped policy with numbers put in by their names in `RoutingPolicy.thresholds`, as in
    `reflex.error_rate`; `name` is whose policy it is.

    Raises ParameterError for a parameter that is unknown or not a number, PolicyError for a value out of range.
    """
    policy = RoutingPolicy()
    known = policy.thresholds()
    numbers = {key for key, value in known.items() if value is None or isinstance(value, int | float)}
    for key, value in parameters.items():
        if key not in numbers:
            raise ParameterError(f"policy {name!r} has no parameter {key!r}; it has: {sorted(numbers)}")
        if isinstance(known[key], int) and value != int(value):
            raise ParameterError(f"{key} = {value!r}: expected a whole number")
    return changed(policy, parameters)
