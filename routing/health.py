"""The health machine of one endpoint, as a table. Whoever reads `TABLE` knows every transition there is.

An event that the table does not list for a state changes nothing. Which observations raise which event is decided in
`reflex.py` (thresholds) and `failback.py` (evidence for a return); what a state means for traffic is
`failback.admission`.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """UNKNOWN has not proven itself yet; DEGRADED keeps a small share; PROBING gets probes only; CANARY earns its
    traffic back; DRAINING was taken out by an operator.
    """

    UNKNOWN = "unknown"
    ACTIVE = "active"
    DEGRADED = "degraded"
    EJECTED = "ejected"
    PROBING = "probing"
    CANARY = "canary"
    DRAINING = "draining"


class Event(StrEnum):
    """What can happen to an endpoint's health."""

    PROVEN = "proven"
    BREACH = "breach"
    SLOW = "slow"
    LIMITED = "limited"
    FORECAST = "forecast"
    DOMAIN = "domain"
    CALM = "calm"
    VALIDATE = "validate"
    RELIEVED = "relieved"
    EJECTION_OVER = "ejection_over"
    PROBES_PASSED = "probes_passed"
    STEP_PROVEN = "step_proven"
    PLAN_DONE = "plan_done"
    DRAIN = "drain"
    RESTORE = "restore"


class Actor(StrEnum):
    """Who caused a transition."""

    REFLEX = "reflex"
    FORECAST = "forecast"
    PLAN = "plan"
    OPERATOR = "operator"


_S, _E = State, Event

TABLE: dict[tuple[State, Event], State] = {
    (_S.UNKNOWN, _E.PROVEN): _S.ACTIVE,
    (_S.UNKNOWN, _E.BREACH): _S.EJECTED,
    (_S.UNKNOWN, _E.SLOW): _S.DEGRADED,
    (_S.UNKNOWN, _E.LIMITED): _S.DEGRADED,
    (_S.UNKNOWN, _E.FORECAST): _S.DEGRADED,
    (_S.ACTIVE, _E.BREACH): _S.EJECTED,
    (_S.ACTIVE, _E.SLOW): _S.DEGRADED,
    (_S.ACTIVE, _E.LIMITED): _S.DEGRADED,
    (_S.ACTIVE, _E.FORECAST): _S.DEGRADED,
    (_S.UNKNOWN, _E.DOMAIN): _S.PROBING,
    (_S.ACTIVE, _E.DOMAIN): _S.PROBING,
    (_S.DEGRADED, _E.DOMAIN): _S.PROBING,
    (_S.CANARY, _E.DOMAIN): _S.PROBING,
    (_S.DEGRADED, _E.BREACH): _S.EJECTED,
    (_S.DEGRADED, _E.SLOW): _S.DEGRADED,
    (_S.DEGRADED, _E.FORECAST): _S.DEGRADED,
    (_S.DEGRADED, _E.CALM): _S.CANARY,
    (_S.DEGRADED, _E.VALIDATE): _S.PROBING,
    (_S.DEGRADED, _E.RELIEVED): _S.ACTIVE,
    (_S.EJECTED, _E.EJECTION_OVER): _S.PROBING,
    (_S.PROBING, _E.PROBES_PASSED): _S.CANARY,
    (_S.CANARY, _E.BREACH): _S.EJECTED,
    (_S.CANARY, _E.SLOW): _S.DEGRADED,
    (_S.CANARY, _E.FORECAST): _S.DEGRADED,
    (_S.CANARY, _E.STEP_PROVEN): _S.CANARY,
    (_S.CANARY, _E.PLAN_DONE): _S.ACTIVE,
    **{(state, _E.DRAIN): _S.DRAINING for state in _S if state is not _S.DRAINING},
    (_S.DRAINING, _E.RESTORE): _S.PROBING,
}

ACTOR_OF: dict[Event, Actor] = {
    _E.PROVEN: Actor.REFLEX,
    _E.BREACH: Actor.REFLEX,
    _E.SLOW: Actor.REFLEX,
    _E.LIMITED: Actor.REFLEX,
    _E.DOMAIN: Actor.REFLEX,
    _E.FORECAST: Actor.FORECAST,
    _E.CALM: Actor.PLAN,
    _E.VALIDATE: Actor.PLAN,
    _E.RELIEVED: Actor.PLAN,
    _E.EJECTION_OVER: Actor.PLAN,
    _E.PROBES_PASSED: Actor.PLAN,
    _E.STEP_PROVEN: Actor.PLAN,
    _E.PLAN_DONE: Actor.PLAN,
    _E.DRAIN: Actor.OPERATOR,
    _E.RESTORE: Actor.OPERATOR,
}


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a transition happened: which metric had which value against which threshold."""

    metric: str
    value: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of one endpoint's machine. `note` is what an operator said: who and why."""

    time: float
    endpoint_id: str
    from_state: State
    to_state: State
    event: Event
    cause: Cause
    note: str = ""

    @property
    def actor(self) -> Actor:
        """Who caused it."""
        return ACTOR_OF[self.event]


@dataclass(slots=True)
class Health:
    """The machine's state for one endpoint, and the evidence gathered in that state.

    `evidence_from`: attempts sent before it no longer count against the endpoint: a return starts with a clean slate.
    `reasons` are the degrading events that still hold, `was_doubted` tells that one of them was about more than a quota
    or a forecast: that something went wrong. Until then `kept` is the share of its traffic that forecasts leave the
    endpoint, `kept_at` when one last said so, `stirred_at` when the risk was last more than faint, and `is_expected`
    tells that one is still to come true. `foreseen_at` is since when nothing but a forecast speaks against it, None
    without one. `relapses` counts recent departures and sets the length of the next one.
    """

    endpoint_id: str
    state: State = State.UNKNOWN
    entered_at: float = 0.0
    evidence_from: float = 0.0
    reasons: set[Event] = field(default_factory=set)
    was_doubted: bool = False
    is_expected: bool = False
    foreseen_at: float | None = None
    kept: float = 1.0
    kept_at: float = 0.0
    stirred_at: float = 0.0
    relapses: int = 0
    forgiven_at: float = 0.0
    held_until: float = 0.0
    probes_passed: int = 0
    probe_failures: int = 0
    probed_at: float = 0.0
    probe_pending: bool = False
    step: int = 0
    step_since: float = 0.0
    step_successes: int = 0
    step_failures: int = 0

    def is_settling(self, now: float, settle_s: float) -> bool:
        """Tell whether a return began less than `settle_s` ago."""
        return self.evidence_from > 0 and now - self.evidence_from < settle_s

    def apply(self, event: Event, cause: Cause, now: float, note: str = "") -> Transition | None:
        """Move by the table; return the transition, or None when the table lists none."""
        target = TABLE.get((self.state, event))
        if target is None:
            return None
        transition = Transition(now, self.endpoint_id, self.state, target, event, cause, note)
        if target is not self.state:
            self.entered_at = now
        self.state = target
        return transition
