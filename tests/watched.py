"""Routecast under watch: the production engine in the arena, with every decision and transition checked as it happens.

The rule of this file: each invariant is one function that raises BrokenError with the numbers that broke it, and knows
nothing of how the engine keeps it. `tests/simulation/test_seeded_runs.py` breaks each of them on purpose.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, isfinite

from routing.actions import Action, Finished, Probe, Transitioned
from routing.engine import Engine
from routing.forecasts import Forecasts
from routing.health import TABLE, Event, Health, State, Transition
from routing.model import Catalogue
from routing.pipeline import Decision, decide
from routing.policy import Policy
from routing.snapshot import Snapshot
from routing.window import Window
from sim.arena.log import Log
from sim.arena.policy import ArenaEndpoint, ArenaRequest
from sim.policies.routecast import MODEL, Forecaster, Routecast

# Replaying a decision costs as much as making it without the memory of plans.
_REPLAYED = 16
# Every so many snapshots, the numbers in it are looked at.
_LOOKED_AT = 4
_ROUNDING = 1e-9
# Departures for a quota or an expectation: nothing went wrong, so none lengthens the next.
_NO_HARM = frozenset({Event.LIMITED, Event.FORECAST})
_OUT = frozenset({State.EJECTED, State.PROBING, State.DRAINING})
_MOST_PLANS = 4096
# An attempt in flight is known by a short id in a dictionary or two.
_BYTES_IN_FLIGHT = 200
# What a window derives from seconds that are over is kept until the next one.
_BYTES_DERIVED = 2048


class BrokenError(AssertionError):
    """An invariant does not hold."""


def check_shares(decision: Decision) -> None:
    """Shares are fractions that sum to one, or there is nobody to share; the excluded have none, and a reason."""
    total = 0.0
    for considered in decision.considered:
        name, share = considered.candidate.facts.endpoint.id, considered.share
        if not 0.0 <= share <= 1.0:
            raise BrokenError(f"{name} has a share of {share}")
        if considered.exclusion and share:
            raise BrokenError(f"{name} is excluded and has a share of {share}")
        total += share
    if decision.chosen is None:
        if total != 0.0:
            raise BrokenError(f"nobody was chosen, and shares sum to {total}")
    else:
        if not abs(total - 1.0) < _ROUNDING:
            raise BrokenError(f"shares sum to {total}")
        if not 0.0 < decision.propensity <= 1.0 + _ROUNDING:
            raise BrokenError(f"chosen with a probability of {decision.propensity}")


def check_service(decision: Decision, health_of: Callable[[str], Health]) -> None:
    """Whoever is out gets probes alone; only when everybody left is out or limited may one of them serve."""
    if decision.chosen is None:
        return
    facts = decision.chosen.facts
    name, now = facts.endpoint.id, decision.time
    if name in decision.request.excluded:
        raise BrokenError(f"{name} was tried and is chosen again")
    if not facts.blocked_until <= now:
        raise BrokenError(f"{name} asked for patience until {facts.blocked_until}, it is {now}")
    state = health_of(name).state
    if state is State.DRAINING:
        raise BrokenError(f"{name} is drained and gets requests")
    if not decision.panic and state in _OUT:
        raise BrokenError(f"{name} is {state} and gets requests at {now}")
    if decision.panic:
        well = [
            c.candidate.facts.endpoint.id
            for c in decision.considered
            if not c.exclusion and health_of(c.candidate.facts.endpoint.id).state not in _OUT
        ]
        if well:
            raise BrokenError(f"panic at {now}, though {well} may serve")


def check_replay(decision: Decision, snapshot: Snapshot) -> None:
    """The record of a decision (snapshot, request, time, draw) gives it again, without the memory of plans."""
    again = decide(replace(snapshot, plans={}), decision.request, decision.time, decision.draw)
    if _essence(again) != _essence(decision):
        raise BrokenError(f"replayed, {_essence(decision)} becomes {_essence(again)}")


def _essence(decision: Decision) -> tuple[object, ...]:
    """All of a decision but the wording of its exclusions, which may count seconds from the plan's making."""
    considered = [(c.candidate.facts, c.share, c.excluded_by) for c in decision.considered]
    return decision.snapshot_version, decision.chosen, decision.propensity, decision.panic, considered


def check_numbers(snapshot: Snapshot) -> None:
    """No number of a snapshot is NaN or infinite, and fractions are fractions."""
    for candidate in snapshot.candidates(MODEL):
        facts, name = candidate.facts, candidate.facts.endpoint.id
        fractions = {
            "admission": facts.admission, "error_rate": facts.error_rate, "quota_share": facts.quota_share,
            "score": candidate.score, "risk": facts.risk or 0.0, **candidate.contributions,
        }  # fmt: skip
        for what, value in fractions.items():
            if not 0.0 <= value <= 1.0:
                raise BrokenError(f"{what} of {name} is {value}")
        for what, value in (("latency_ratio", facts.latency_ratio), ("latency_s", facts.latency_s or 1.0)):
            if not 0.0 < value < inf:
                raise BrokenError(f"{what} of {name} is {value}")
        if not isfinite(facts.blocked_until):
            raise BrokenError(f"{name} is limited until {facts.blocked_until}")
        if facts.in_flight < 0:
            raise BrokenError(f"{name} has {facts.in_flight} in flight")


def check_log(log: Log, deadline_s: float) -> None:
    """Every request was answered in time or has failed; nothing recorded is NaN but the wait for what never came."""
    answered = ~log.failed
    times = log.ttft_s[answered]
    if not ((times > 0) & (times <= deadline_s)).all():
        raise BrokenError("an answer has no first token in time")
    known = log.ttft_s[log.ttft_s == log.ttft_s]
    if not ((known >= 0) & (known <= deadline_s)).all():
        raise BrokenError("a first token came before its request or too late")
    for what, values in (("cost_usd", log.cost_usd), ("probe_s", log.probe_s), ("warned_s", log.warned_s)):
        if not ((values >= 0) & (values < inf)).all():
            raise BrokenError(f"{what} holds a value that is no amount")
    if not (log.attempts[answered] >= 1).all():
        raise BrokenError("an answer took no attempt")
    if not ((log.attempts >= 1 + log.hedged).all() or log.failed.any()):
        raise BrokenError("a hedge is no attempt")


def size_of(window: Window) -> int:
    """Return the size of everything a window holds, in bytes."""
    return len(pickle.dumps(window, protocol=5))


def check_memory(window: Window, least: int) -> None:
    """A window grows only by what is in flight; `least` is the size of a fresh one."""
    most = least + _BYTES_DERIVED + _BYTES_IN_FLIGHT * window.in_flight
    size = size_of(window)
    if size > most:
        raise BrokenError(f"a window of {least} bytes has grown to {size}, with {window.in_flight} in flight")


class Holds:
    """The book of one endpoint's transitions, which says how long it must stay where it went."""

    def __init__(self, policy: Policy, now: float) -> None:
        self._policy = policy
        self._state = State.UNKNOWN
        self._since = now
        self._step_since = now
        self._left: list[float] = []

    def heard(self, transition: Transition) -> None:
        """A transition comes from the state the last one led to, is in the table, and respects the hold of that state:
        its base, doubled for each departure within `forgive_s` for which something went wrong, and the time of each
        step of a return.
        """
        t, was, name = transition, self._state, transition.endpoint_id
        if t.from_state is not was:
            raise BrokenError(f"{name} leaves {t.from_state}, but was {was}")
        if TABLE.get((was, t.event)) is not t.to_state:
            raise BrokenError(f"{name} goes from {was} to {t.to_state} by {t.event}")
        if not (isfinite(t.cause.value) and isfinite(t.cause.threshold)):
            raise BrokenError(f"{name} moves for {t.cause}")
        stayed_s, needed_s = t.time - self._since, self._hold_s(t)
        if t.event in (Event.STEP_PROVEN, Event.PLAN_DONE):
            stayed_s = t.time - self._step_since
        if not stayed_s >= needed_s - _ROUNDING:
            raise BrokenError(f"{name} leaves {was} by {t.event} after {stayed_s} s of {needed_s} s")
        doubted = t.to_state is State.EJECTED or (t.to_state is State.DEGRADED and t.event not in _NO_HARM)
        if doubted:
            self._left.append(t.time)
        if t.to_state is not was or doubted:
            self._since = t.time
        self._step_since = t.time
        self._state = t.to_state

    def _hold_s(self, t: Transition) -> float:
        reflex, failback = self._policy.reflex, self._policy.failback
        match t.event:
            case Event.EJECTION_OVER:
                return self._doubled(reflex.ejection_s, reflex.max_ejection_s)
            case Event.CALM | Event.VALIDATE:
                return self._doubled(failback.min_hold_s, failback.max_hold_s)
            case Event.STEP_PROVEN | Event.PLAN_DONE if failback.shares():
                return failback.step_s
            case _:
                return 0.0

    def _doubled(self, base_s: float, most_s: float) -> float:
        recent = sum(self._left[-1] - left < self._policy.reflex.forgive_s for left in self._left[:-1])
        return min(base_s * 2.0**recent, max(base_s, most_s))


class Recorded(Engine):
    """The engine, with a listener for every action it returns."""

    def __init__(self, catalogue: Catalogue, policy: Policy, now: float) -> None:
        self.listener: Callable[[Action], None] = lambda _: None
        self._depth = 0
        super().__init__(catalogue, policy, now)

    def finished(self, result: Finished, now: float) -> list[Action]:
        """See Engine."""
        return self._told(lambda: Engine.finished(self, result, now))

    def probed(self, result: Finished, now: float) -> list[Action]:
        """See Engine."""
        return self._told(lambda: Engine.probed(self, result, now))

    def forecast(self, forecasts: Forecasts, now: float) -> list[Action]:
        """See Engine."""
        return self._told(lambda: Engine.forecast(self, forecasts, now))

    def tick(self, now: float) -> list[Action]:
        """See Engine."""
        return self._told(lambda: Engine.tick(self, now))

    def _told(self, act: Callable[[], list[Action]]) -> list[Action]:
        # A probe of an endpoint in service is an attempt to the engine, which would be heard twice.
        self._depth += 1
        try:
            actions = act()
        finally:
            self._depth -= 1
        if not self._depth:
            for action in actions:
                self.listener(action)
        return actions


class Watched(Routecast):
    """Routecast that checks itself. `seen` counts what happened, so that a test knows there was something to check.

    Its window sizes are checked by `close`, which belongs at the end of a run.
    """

    def __init__(
        self,
        endpoints: Sequence[ArenaEndpoint],
        policy: Policy,
        forecaster: Forecaster | None = None,
        make_engine: Callable[[Catalogue, Policy, float], Recorded] = Recorded,
    ) -> None:
        super().__init__(
            endpoints, policy, forecaster, "watched", asks_for_hedges=True,
            make_engine=make_engine,
        )  # fmt: skip
        self.seen: Counter[str] = Counter()
        self._holds = {endpoint.id: Holds(policy, 0.0) for endpoint in endpoints}
        self.ids = [endpoint.id for endpoint in endpoints]
        self._fresh_bytes = size_of(Window())
        self._decisions = 0
        self._ticks = 0
        self._last: Decision | None = None
        assert isinstance(self.engine, Recorded)
        self.engine.listener = self._heard

    def decide(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> Decision:
        """Check what is decided."""
        decision = super().decide(request, tried, now, draw)
        # Many decisions share a plan, and with it all shares.
        if self._last is None or decision.plan is not self._last.plan:
            check_shares(decision)
        self._last = decision
        self._decisions += 1
        if self._decisions % _REPLAYED == 0:
            check_replay(decision, self.engine.snapshot)
            self.seen["replayed"] += 1
        return decision

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Check who is to serve."""
        endpoint = super().route(request, tried, now, draw)
        assert self._last is not None
        check_service(self._last, self.engine.health_of)
        self.seen["panic"] += self._last.panic
        self.seen["refused"] += endpoint is None
        return endpoint

    def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Check that a hedge goes to somebody who serves."""
        endpoint = super().hedge(request, tried, now, draw)
        if endpoint is not None:
            state = self.engine.health_of(self.ids[endpoint]).state
            if state in _OUT:
                raise BrokenError(f"endpoint {endpoint} is {state} and gets a hedge at {now}")
            self.seen["hedges"] += 1
        return endpoint

    def tick(self, now: float) -> Sequence[int]:
        """Check the new snapshot."""
        probes = super().tick(now)
        snapshot = self.engine.snapshot
        self._ticks += 1
        if self._ticks % _LOOKED_AT == 0:
            check_numbers(snapshot)
        if len(snapshot.plans) > _MOST_PLANS:
            raise BrokenError(f"a snapshot remembers {len(snapshot.plans)} plans")
        self.seen["probes"] += len(probes)
        return probes

    def close(self) -> None:
        """Check what is left in memory at the end."""
        for name in self._holds:
            check_memory(self.engine.window_of(name), self._fresh_bytes)

    def _heard(self, action: Action) -> None:
        if isinstance(action, Transitioned):
            self._holds[action.endpoint.id].heard(action.transition)
            self.seen[action.transition.event] += 1
        elif isinstance(action, Probe):
            state = self.engine.health_of(action.endpoint.id).state
            if state not in (State.PROBING, State.DEGRADED, State.CANARY):
                raise BrokenError(f"a probe of an endpoint that is {state}")
