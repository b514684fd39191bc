"""The reflex: which observations cross which threshold. Pure reads of a window; runs on every observation."""

from math import sqrt

from routing.health import Cause
from routing.outcomes import TRAITS, Outcome
from routing.policy import ReflexPolicy
from routing.window import Window

SPAN_S = 15


def _span(now: float, evidence_from: float) -> int:
    return min(SPAN_S, int(now) - int(evidence_from))


def breach(window: Window, outcome: Outcome, policy: ReflexPolicy, now: float, evidence_from: float) -> Cause | None:
    """Return what ejects the endpoint after this failed `outcome`, or None."""
    if TRAITS[outcome].hard:
        return Cause(outcome.value, 1.0, 1.0)
    if window.consecutive_failures >= policy.consecutive_failures:
        return Cause("consecutive_failures", float(window.consecutive_failures), float(policy.consecutive_failures))
    span_s = _span(now, evidence_from)
    sums = window.sums(now, span_s)
    if sums.judged >= policy.min_attempts and sums.error_rate >= policy.error_rate:
        return Cause(f"error_rate_{span_s}s", sums.error_rate, policy.error_rate)
    return None


def slow(window: Window, policy: ReflexPolicy, now: float, evidence_from: float) -> Cause | None:
    """Return what degrades the endpoint for its latency or for attempts that hang, or None."""
    ratio, samples = window.latency_shift(now, max(1, _span(now, evidence_from)))
    if samples >= policy.min_latency_samples and ratio >= policy.latency_ratio:
        return Cause("latency_ratio_15s", ratio, policy.latency_ratio)
    waited_s = window.oldest_waiting_s(now)
    if waited_s > policy.hang_floor_s:
        usual_s = window.latency_quantile(0.95, now)
        limit_s = (
            max(policy.hang_floor_s, policy.hang_ratio * usual_s)
            if usual_s is not None
            else policy.hang_floor_s * policy.hang_ratio
        )
        if waited_s > limit_s and window.hanging(now, limit_s) >= policy.min_hanging:
            return Cause("oldest_waiting_s", waited_s, limit_s)
    return None


def still_slow(window: Window, policy: ReflexPolicy, now: float) -> bool:
    """Tell whether a slow endpoint has not recovered yet: its ratio must fall to the threshold's square root
    (hysteresis).
    """
    ratio, samples = window.latency_shift(now, SPAN_S)
    return (samples > 0 and ratio >= sqrt(policy.latency_ratio)) or slow(window, policy, now, 0.0) is not None
