"""The reflex: which observations cross which threshold. Reads a window and a detector; runs on every observation."""

from math import log, sqrt

from routing.detector import FailureDetector
from routing.health import Cause
from routing.outcomes import Outcome
from routing.policy import ReflexPolicy
from routing.window import Counter, Window

SPAN_S = 15
RATE_SPAN_S = 60
_FORGOTTEN = 20.0
_MIN_HANG_SAMPLES = 20


def normal_failure_rate(window: Window, policy: ReflexPolicy, now: float) -> float:
    """Return the failure rate that is normal for the endpoint: its baseline's, drawn towards the policy's, never
    below it.
    """
    baseline = window.baseline(now)
    rate = (baseline.failures + _FORGOTTEN * policy.normal_rate) / (baseline.judged + _FORGOTTEN)
    return max(rate, policy.normal_rate)


def breach(
    window: Window, detector: FailureDetector, outcome: Outcome, policy: ReflexPolicy, now: float, *, hard: bool
) -> Cause | None:
    """Return what ejects the endpoint after a failure that the detector has just been told of, or None."""
    if hard and now - window.last_ok_at > policy.silence_s:
        return Cause(outcome.value, 1.0, 1.0)
    attempts_per_s = window.sums(now, RATE_SPAN_S).judged / RATE_SPAN_S
    threshold = detector.threshold(attempts_per_s, policy.false_alarm_every_s)
    if detector.evidence >= threshold:
        return Cause("failure_evidence", detector.evidence, threshold)
    return None


def slow(window: Window, policy: ReflexPolicy, now: float, evidence_from: float) -> Cause | None:
    """Return what degrades the endpoint for its latency or for attempts that hang, or None."""
    span_s = min(SPAN_S, int(now) - int(evidence_from))
    if span_s >= 1:
        shift = window.latency_shift(now, span_s)
        if (
            shift.samples >= policy.min_latency_samples
            and shift.ratio >= policy.latency_ratio
            and log(shift.ratio) >= policy.latency_z * shift.standard_error
        ):
            return Cause("latency_ratio", shift.ratio, policy.latency_ratio)
    return _hanging(window, policy, now)


def hang_limit_s(window: Window, policy: ReflexPolicy, now: float, *, streamed: bool) -> float | None:
    """Return the wait for a first byte beyond which an attempt hangs; None while the endpoint's own normal is not
    known.
    """
    if window.baseline(now)[Counter.TTFT_N if streamed else Counter.REPLY_N] < _MIN_HANG_SAMPLES:
        return None
    usual_s = window.latency_quantile(0.95, now, streamed=streamed)
    return None if usual_s is None else max(policy.hang_floor_s, policy.hang_ratio * usual_s)


def _hanging(window: Window, policy: ReflexPolicy, now: float) -> Cause | None:
    for streamed in (True, False):
        since = window.waiting_since(streamed=streamed)
        # The oldest ones decide, so the cheap test comes first.
        if len(since) < policy.min_hanging or now - since[policy.min_hanging - 1] <= policy.hang_floor_s:
            continue
        limit_s = hang_limit_s(window, policy, now, streamed=streamed)
        if limit_s is not None and now - since[policy.min_hanging - 1] > limit_s:
            return Cause("waiting_s", now - since[0], limit_s)
    return None


def still_slow(window: Window, policy: ReflexPolicy, now: float) -> bool:
    """Tell whether a slow endpoint has not recovered yet: its ratio must fall to the threshold's square root
    (hysteresis).
    """
    shift = window.latency_shift(now, SPAN_S)
    return (shift.samples > 0 and shift.ratio >= sqrt(policy.latency_ratio)) or _hanging(
        window, policy, now
    ) is not None
