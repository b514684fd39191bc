"""How an endpoint leaves and earns its traffic back: holds, probes, steps with evidence. Works on one `Health`
alone.
"""

from functools import lru_cache
from math import ceil, comb, exp, log1p

from routing.health import Cause, Event, Health, State
from routing.policy import FailbackPolicy, ReflexPolicy

_PROBE_BACKOFF = 1.5
_MAX_PROBE_FAILURES = 20
_MAX_RELAPSES = 16
_PROBE_LOST_S = 30.0
_MOST_ATTEMPTS = 500
# How long forecasts have to be silent before they give traffic back, and how long where the risk is faint: a tenth of
# the one at which they fall silent.
RETURN_S = 15.0
FAINT_S = 5.0
FAINT_RATIO = 0.1


def _hold(health: Health, base_s: float, most_s: float, now: float) -> None:
    """Begin a hold: twice as long for each recent departure, up to `most_s`."""
    hold_s = min(base_s * 2.0**health.relapses, max(base_s, most_s))
    health.held_until = max(health.held_until, now + hold_s)


def _record(health: Health, policy: ReflexPolicy) -> None:
    """Put a departure on record: the next hold is longer, until this one is forgiven."""
    health.relapses = min(health.relapses + 1, _MAX_RELAPSES)
    health.forgiven_at = health.held_until + policy.forgive_s


def start_ejection(health: Health, policy: ReflexPolicy, now: float) -> None:
    """Take the endpoint out, for the ejection time at least."""
    _hold(health, policy.ejection_s, policy.max_ejection_s, now)
    _record(health, policy)
    health.reasons.clear()


def forgive(health: Health, policy: ReflexPolicy, now: float) -> None:
    """Take one doubling back after each `forgive_s` in good health."""
    if health.relapses and health.state is State.ACTIVE and now >= health.forgiven_at:
        health.relapses -= 1
        health.forgiven_at = now + policy.forgive_s


def start_limited(health: Health) -> None:
    """Begin a degradation for a rate limit alone: the quota decides how much traffic is left, and nothing is
    doubted.
    """
    health.reasons = {Event.LIMITED}
    health.was_doubted = False
    health.kept = 1.0


def start_expected(health: Health, share: float, now: float, *, was_degraded: bool) -> None:
    """Begin a degradation for a forecast alone, which leaves the endpoint `share` in [0, 1] of its traffic: nothing has
    gone wrong, so it comes back as the risk falls, without probes, steps or a relapse on record.
    """
    health.reasons.add(Event.FORECAST)
    health.is_expected = True
    if not was_degraded:
        health.was_doubted = False
    _keep(health, share, now)


def _keep(health: Health, share: float, now: float) -> None:
    health.kept, health.kept_at, health.stirred_at = share, now, now


def follow_forecast(
    health: Health, share: float | None, now: float, *, faint_at: float | None, is_borne_out: bool
) -> None:
    """Let the endpoint keep `share` in [0, 1] of its traffic; all of it when None is asked for RETURN_S long, or for
    FAINT_S where forecasts called the risk faint all that time, the last at `faint_at` (None when it did not), and
    attempts bear it out. It comes back at once, so that neither a risk that wavers nor a share near one half swings the
    traffic to and fro. A rate limit that lasts comes first: its slow start would swing it, too.
    """
    if share is not None:
        _keep(health, share, now)
        return
    if faint_at is None:
        health.stirred_at = now
    is_faint = faint_at is not None and faint_at - health.stirred_at >= FAINT_S
    is_over = now - health.kept_at >= RETURN_S or (is_faint and is_borne_out)
    if is_over and Event.LIMITED not in health.reasons:
        health.kept = 1.0


def start_doubt(health: Health, event: Event, failback: FailbackPolicy, reflex: ReflexPolicy, now: float) -> None:
    """Begin a degradation for more than a quota or a forecast, which may go on beside it: the endpoint must hold still,
    and earn its traffic back afterwards. A forecast that interrupts a return makes it wait, and is no relapse.
    """
    health.reasons.add(event)
    health.was_doubted = True
    _hold(health, failback.min_hold_s, failback.max_hold_s, now)
    if event is not Event.FORECAST:
        _record(health, reflex)


def start_probing(health: Health) -> None:
    """Begin to ask for probes."""
    health.probes_passed = 0
    health.probe_failures = 0
    health.probe_pending = False


def probe_passed(health: Health) -> None:
    """A probe was answered."""
    health.probes_passed += 1
    health.probe_failures = 0


def probe_failed(health: Health) -> None:
    """A probe was not answered: the count starts again."""
    health.probes_passed = 0
    health.probe_failures = min(health.probe_failures + 1, _MAX_PROBE_FAILURES)


def probe_interval_s(health: Health, policy: FailbackPolicy) -> float:
    """Return the pause between two probes: longer with each failure, so that a long outage costs little."""
    longest_s = max(policy.probe_interval_s, policy.max_probe_interval_s)
    return min(policy.probe_interval_s * _PROBE_BACKOFF**health.probe_failures, longest_s)


def wants_probe(health: Health, policy: FailbackPolicy, now: float, blocked_until: float, observed_at: float) -> bool:
    """Tell whether an endpoint needs a probe: always while probing, on its way back when traffic brings no evidence.

    One probe at a time; one that was never reported counts as lost after 30 s. `observed_at` is when the endpoint was
    last heard of, `blocked_until` the end of its rate limit.
    """
    since_s, interval_s = now - health.probed_at, probe_interval_s(health, policy)
    if now < blocked_until or since_s < interval_s or (health.probe_pending and since_s < _PROBE_LOST_S):
        return False
    if health.state is State.PROBING:
        return True
    return health.state in (State.DEGRADED, State.CANARY) and now - observed_at >= interval_s


def start_canary(health: Health, now: float) -> None:
    """Begin at the first step with a clean slate."""
    health.reasons.clear()
    health.evidence_from = now
    health.step = 0
    _start_step(health, now)


def advance(health: Health, now: float) -> None:
    """Go to the next step."""
    health.step += 1
    _start_step(health, now)


def _start_step(health: Health, now: float) -> None:
    health.step_since = now
    health.step_successes = 0
    health.step_failures = 0


@lru_cache(maxsize=4096)
def failure_rate_bound(failures: int, attempts: int, confidence: float) -> float:
    """Return the exact upper bound on a failure rate at one-sided `confidence` (Clopper and Pearson, 1934).

    1.0 without attempts. Found by bisection on the binomial distribution, to 1e-4.
    """
    if failures >= attempts:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        rate = (low + high) / 2
        at_most = sum(comb(attempts, k) * rate**k * exp((attempts - k) * log1p(-rate)) for k in range(failures + 1))
        low, high = (rate, high) if at_most > 1 - confidence else (low, rate)
    return high


def step_evidence(health: Health, policy: FailbackPolicy, now: float, overdue: int) -> tuple[Event, Cause] | None:
    """Return the event the return has earned: the next step, or the end of the plan; None while evidence or time
    lacks.

    `overdue` attempts of the return count as failures until they end: what ends soon always ends first, so a provider
    whose long answers crawl would otherwise be judged by its short ones.
    """
    steps = len(policy.shares())
    if steps == 0:
        return Event.PLAN_DONE, Cause("probes_passed", float(health.probes_passed), float(policy.probes_needed()))
    if now - health.step_since < policy.step_s:
        return None
    # Beyond a few hundred attempts the bound hardly moves, and the binomial sum would only grow longer.
    failures = health.step_failures + overdue
    attempts = health.step_successes + failures
    shrink = min(1.0, _MOST_ATTEMPTS / max(1, attempts))
    bound = failure_rate_bound(ceil(failures * shrink), round(attempts * shrink), policy.confidence)
    if bound > policy.max_failure_rate:
        return None
    cause = Cause("failure_rate_bound", bound, policy.max_failure_rate)
    return (Event.PLAN_DONE if health.step + 1 >= steps else Event.STEP_PROVEN), cause


def admission(health: Health, policy: FailbackPolicy) -> float:
    """Return the share of its traffic that the endpoint's state admits, in [0, 1], before any quota."""
    match health.state:
        case State.EJECTED | State.PROBING | State.DRAINING:
            return 0.0
        case State.DEGRADED:
            return policy.degraded_share if health.was_doubted else max(policy.degraded_share, health.kept)
        case State.CANARY:
            shares = policy.shares()
            return shares[min(health.step, len(shares) - 1)] if shares else 1.0
        case _:
            return 1.0
