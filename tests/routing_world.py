"""A virtual clock and scripted providers around the real engine: failover stories in milliseconds, from a seed.

Nothing here decides. Requests ask `routing.pipeline.decide`, obey `routing.attempts`, and report to `routing.engine`;
the world only lets time pass, draws arrivals and lets a script say how each attempt ends.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

from routing.actions import Action, DomainChanged, Finished, Probe, Transitioned
from routing.attempts import RequestBudget, first_byte_timeout_s, refusal_to_retry
from routing.engine import Engine
from routing.health import State, Transition
from routing.model import Capability, Catalogue, Endpoint, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import Decision, decide
from routing.policy import AttemptPolicy, FailbackKind, FailbackPolicy, Policy, ReflexPolicy

MODEL = "openai/gpt-4"


def endpoint(endpoint_id: str, order: int = 0, **changes: object) -> Endpoint:
    """Return an endpoint of MODEL whose provider bears its id."""
    values: dict[str, object] = {
        "id": endpoint_id,
        "provider": endpoint_id,
        "region": "eu-west",
        "zone": "eu-west-a",
        "model": MODEL,
        "provider_model": "gpt-4",
        "order": order,
        "capabilities": frozenset({Capability.CHAT, Capability.STREAMING}),
    }
    return Endpoint(**(values | changes))  # type: ignore[arg-type]  # built by keyword from a table


def patient(kind: FailbackKind = FailbackKind.CANARY, ramp_step: float = 0.05) -> Policy:
    """Return a policy whose holds may grow to five minutes: the shipped minute ends their growth after four relapses,
    too early to tell growth from a constant.
    """
    return Policy(
        reflex=ReflexPolicy(max_ejection_s=300.0, forgive_s=120.0),
        failback=FailbackPolicy(kind, ramp_step=ramp_step, max_hold_s=300.0),
    )


def engine_of(*names: str, policy: Policy | None = None, now: float = 0.0) -> Engine:
    """Return an engine over endpoints of MODEL in the given order."""
    catalogue = Catalogue.of(endpoint(name, order) for order, name in enumerate(names))
    return Engine(catalogue, policy or Policy(), now)


def observe(engine: Engine, name: str, outcome: Outcome, now: float, ttft_s: float | None = None) -> list[Action]:
    """Start and finish one attempt at `now`."""
    engine.started(name, "attempt", now)
    return engine.finished(Finished(name, "attempt", outcome, ttft_s=ttft_s), now)


def eject(engine: Engine, name: str, now: float) -> Transition:
    """Take an endpoint that has served nothing for a while out of service by one refused connection."""
    (transition,) = transitions_of(observe(engine, name, Outcome.CONNECT_ERROR, now))
    assert transition.to_state is State.EJECTED
    return transition


def bring_to_canary(engine: Engine, name: str, now: float) -> None:
    """End the endpoint's ejection at `now` and let as many probes pass as its return needs."""
    engine.tick(now)
    assert engine.health_of(name).state is State.PROBING
    for i in range(engine.policy.failback.probes_needed()):
        engine.probed(Finished(name, f"probe-{i}", Outcome.OK), now)
    assert engine.health_of(name).state is State.CANARY


def transitions_of(actions: Iterable[Action]) -> list[Transition]:
    """Return the transitions among the actions."""
    return [action.transition for action in actions if isinstance(action, Transitioned)]


@dataclass(frozen=True, slots=True)
class Reply:
    """How an attempt ends when nobody interrupts it. `ttft_s` may be infinite: a hang. A stream of `output_tokens`
    takes `generation_s` from its first byte to its end.
    """

    ttft_s: float
    outcome: Outcome = Outcome.OK
    retry_after_s: float | None = None
    output_tokens: int = 0
    generation_s: float = 0.0


Script = Callable[[float, random.Random], Reply]


def steady(now: float, rng: random.Random) -> Reply:
    """Answer in about 200 ms."""
    del now
    return Reply(rng.lognormvariate(-1.6, 0.2))


def during(start: float, end: float, inside: Script, outside: Script = steady) -> Script:
    """Return a script that follows `inside` from `start` to `end` and `outside` otherwise."""
    return lambda now, rng: (inside if start <= now < end else outside)(now, rng)


def always(reply: Reply) -> Script:
    """Return a script of one reply."""
    return lambda _now, _rng: reply


@dataclass(frozen=True, slots=True)
class Served:
    """One request's end: who answered (or "" for nobody), when, after how many attempts."""

    time: float
    arrived: float
    endpoint_id: str
    attempts: int
    retry_after_s: float | None


@dataclass(slots=True)
class _Walk:
    request: RouteRequest
    arrived: float
    budget: RequestBudget
    tried: list[str] = field(default_factory=list)


class World:
    """Providers by script, requests at a rate, one engine. `run` may be called again to continue.

    `endpoints`, one for each script and in their order, says where they are; without it each is a provider of its own.
    """

    def __init__(
        self,
        scripts: Mapping[str, Script],
        policy: Policy | None = None,
        seed: int = 7,
        endpoints: Iterable[Endpoint] = (),
    ) -> None:
        self.engine = engine_of(*scripts, policy=policy)
        if endpoints:
            self.engine = Engine(Catalogue.of(endpoints), policy or Policy(), 0.0)
        self.domains: list[DomainChanged] = []
        self.scripts = scripts
        self.now = 0.0
        self.transitions: list[Transition] = []
        self.decisions: list[Decision] = []
        self.served: list[Served] = []
        self.probes: Counter[str] = Counter()
        self.leaders: list[tuple[float, str]] = []
        self.sent: list[tuple[float, RequestBudget]] = []
        self._rng = random.Random(seed)
        self._order = count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._at(1.0, self._tick)

    def run(self, until: float, every_s: float) -> None:
        """Let time pass to `until` with Poisson arrivals, `every_s` apart on average."""
        arrival = self.now + self._rng.expovariate(1 / every_s)
        while arrival < until:
            self._at(arrival, self._arrive)
            arrival += self._rng.expovariate(1 / every_s)
        while self._due and self._due[0][0] <= until:
            self.now, _, call = heapq.heappop(self._due)
            call()
        self.now = until

    def between(self, start: float, end: float) -> list[Served]:
        """Return the requests that arrived in [start, end) and are over."""
        return [served for served in self.served if start <= served.arrived < end]

    def states(self, name: str) -> list[State]:
        """Return the states the endpoint entered, in order."""
        return [t.to_state for t in self.transitions if t.endpoint_id == name and t.to_state is not t.from_state]

    def switches(self) -> list[float]:
        """Return when the endpoint with the largest share changed."""
        return [time for (_, before), (time, after) in pairwise(self.leaders) if before != after]

    def _at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time, next(self._order), call))

    def _do(self, actions: list[Action]) -> None:
        self.transitions += transitions_of(actions)
        self.domains += [action for action in actions if isinstance(action, DomainChanged)]
        for action in actions:
            if isinstance(action, Probe):
                self._probe(action.endpoint.id)

    def _tick(self) -> None:
        self._do(self.engine.tick(self.now))
        decision = decide(self.engine.snapshot, RouteRequest(MODEL), self.now, 0.5)
        largest = max(decision.considered, key=lambda c: c.share)
        self.leaders.append((self.now, largest.candidate.facts.endpoint.id))
        self._at(self.now + 1.0, self._tick)

    def _probe(self, name: str) -> None:
        self.probes[name] += 1
        attempt_id = f"probe-{next(self._order)}"
        self.engine.started(name, attempt_id, self.now)
        reply = self.scripts[name](self.now, self._rng)
        limit_s = self.engine.policy.attempts.ttft_timeout_s
        outcome = reply.outcome if reply.ttft_s <= limit_s else Outcome.TIMEOUT
        result = Finished(name, attempt_id, outcome, retry_after_s=reply.retry_after_s)
        self._at(self.now + min(reply.ttft_s, limit_s), lambda: self._do(self.engine.probed(result, self.now)))

    def _arrive(self) -> None:
        budget = RequestBudget(self.now + self._attempts.deadline_s, idempotent=True)
        self._attempt(_Walk(RouteRequest(MODEL), self.now, budget))

    @property
    def _attempts(self) -> AttemptPolicy:
        return self.engine.policy.attempts

    def _attempt(self, walk: _Walk) -> None:
        request = RouteRequest(MODEL, excluded=frozenset(walk.tried))
        decision = decide(self.engine.snapshot, request, self.now, self._rng.random())
        self.decisions.append(decision)
        if decision.chosen is None:
            self._end(walk, "", decision.retry_after_s)
            return
        name = decision.chosen.facts.endpoint.id
        walk.tried.append(name)
        attempt_id = f"attempt-{next(self._order)}"
        self.sent.append((self.now, walk.budget))
        self.engine.started(name, attempt_id, self.now)
        reply = self.scripts[name](self.now, self._rng)
        others_left = len(walk.tried) < len(self.scripts)
        limit_s = first_byte_timeout_s(walk.budget, self._attempts, self.now, streamed=True, others_left=others_left)
        first_byte = self.now + min(reply.ttft_s, limit_s)
        if reply.ttft_s > limit_s:
            reply = Reply(limit_s, Outcome.TIMEOUT)
        result = Finished(name, attempt_id, reply.outcome, retry_after_s=reply.retry_after_s)
        if reply.outcome is Outcome.OK:
            ttft_s, tokens = reply.ttft_s, reply.output_tokens
            result = replace(result, ttft_s=ttft_s, output_tokens=tokens, generation_s=reply.generation_s)
        if reply.generation_s:
            self._at(first_byte, lambda: self.engine.first_byte(name, attempt_id, self.now))
        self._at(first_byte + reply.generation_s, lambda: self._finish(walk, result))

    def _finish(self, walk: _Walk, result: Finished) -> None:
        self._do(self.engine.finished(result, self.now))
        if result.outcome is Outcome.OK:
            self._end(walk, result.endpoint_id, None)
        elif refusal_to_retry(result.outcome, len(walk.tried), False, walk.budget, self._attempts, self.now):
            self._end(walk, "", None)
        else:
            self._attempt(walk)

    def _end(self, walk: _Walk, name: str, retry_after_s: float | None) -> None:
        self.served.append(Served(self.now, walk.arrived, name, len(walk.tried), retry_after_s))
