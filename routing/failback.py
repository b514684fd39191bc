"""How an endpoint earns its traffic back: ejection time, probes, canary steps. Works on one `Health`, decides nothing
about others.
"""

from routing.health import Cause, Event, Health, State
from routing.policy import FailbackPolicy, ReflexPolicy


def start_ejection(health: Health, policy: ReflexPolicy, now: float) -> None:
    """Set how long the endpoint stays out: twice as long for each recent ejection, up to the policy's limit."""
    duration_s = min(policy.ejection_s * 2.0**health.ejections, policy.max_ejection_s)
    health.ejected_until = now + duration_s
    health.ejections += 1
    health.forgiven_at = now + duration_s + policy.forgive_s
    health.reasons.clear()
    health.probes_passed = 0


def forgive(health: Health, policy: ReflexPolicy, now: float) -> None:
    """Take one doubling back after each quiet `forgive_s`."""
    if health.ejections and health.state is State.ACTIVE and now >= health.forgiven_at:
        health.ejections -= 1
        health.forgiven_at = now + policy.forgive_s


def start_degraded(health: Health, event: Event) -> None:
    """Begin a degradation with its first reason."""
    health.reasons.clear()
    health.was_doubted = False
    doubt(health, event)


def doubt(health: Health, event: Event) -> None:
    """Add a reason to a degradation. A quota alone needs no canary afterwards: its own share grows back."""
    health.reasons.add(event)
    health.was_doubted = health.was_doubted or event is not Event.LIMITED


def start_canary(health: Health, now: float) -> None:
    """Begin at the first step with a clean slate."""
    health.reasons.clear()
    health.evidence_from = now
    health.step = 0
    health.step_since = now
    health.step_successes = 0


def advance(health: Health, policy: FailbackPolicy, now: float) -> None:
    """Go to the next step."""
    health.step = min(health.step + 1, len(policy.steps) - 1)
    health.step_since = now
    health.step_successes = 0


def step_evidence(health: Health, policy: FailbackPolicy, now: float) -> tuple[Event, Cause] | None:
    """Return the event the canary has earned: the next step, or the end of the plan; None while evidence or time is
    missing.
    """
    if health.step_successes < policy.step_successes or now - health.step_since < policy.step_s:
        return None
    cause = Cause("step_successes", float(health.step_successes), float(policy.step_successes))
    return (Event.PLAN_DONE if health.step + 1 == len(policy.steps) else Event.STEP_PROVEN), cause


def admission(health: Health, policy: FailbackPolicy) -> float:
    """Return the share of its traffic that the endpoint's state admits, in [0, 1], before any quota."""
    match health.state:
        case State.EJECTED | State.PROBING:
            return 0.0
        case State.DEGRADED:
            return policy.degraded_share if health.was_doubted else 1.0
        case State.CANARY:
            return policy.steps[health.step]
        case _:
            return 1.0
