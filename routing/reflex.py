"""The reflex: which observations cross which threshold. Reads a window and a detector; runs on every observation.

Each signal is judged against the endpoint's own normal of that signal: failures, poor answers, latency, pace, and the
attempts in flight that are overdue.
"""

from collections.abc import Iterable
from itertools import takewhile
from math import ceil, exp, log, sqrt

from routing.counts import Counter, Shift, Sums
from routing.detector import FailureDetector
from routing.health import Cause
from routing.outcomes import TRAITS, Outcome
from routing.policy import Policy, ReflexPolicy
from routing.window import SECONDS, Window

SPAN_S = 15
RATE_SPAN_S = 60
_FORGOTTEN = 20.0
_MIN_HANG_SAMPLES = 20
_UNKNOWN_PATIENCE = 0.2


def normal_failure_rate(window: Window, policy: ReflexPolicy, now: float) -> float:
    """Return the failure rate that is normal for the endpoint, poor answers apart: its baseline's, drawn towards the
    policy's, never below it.
    """
    baseline = window.baseline(now)
    return _normal(baseline.failures - baseline[Counter.POOR_ANSWER], baseline, policy)


def normal_poor_rate(window: Window, policy: ReflexPolicy, now: float) -> float:
    """Return the rate of poor answers that is normal for the endpoint, found as that of failures."""
    baseline = window.baseline(now)
    return _normal(baseline[Counter.POOR_ANSWER], baseline, policy)


def _normal(count: float, baseline: Sums, policy: ReflexPolicy) -> float:
    if not count:
        return policy.normal_rate
    rate = (count + _FORGOTTEN * policy.normal_rate) / (baseline.judged + _FORGOTTEN)
    return max(rate, policy.normal_rate)


def breach(
    window: Window, detector: FailureDetector, outcome: Outcome, policy: ReflexPolicy, now: float, *, hard: bool
) -> Cause | None:
    """Return what ejects the endpoint after a failure that the detector has just been told of, or None."""
    if hard and now - window.last_ok_at > policy.silence_s:
        return Cause(outcome.value, 1.0, 1.0)
    return _evidence("failure_evidence", window, detector, policy, now)


def poor_breach(
    window: Window,
    detector: FailureDetector,
    outcome: Outcome,
    peers: Iterable[Window],
    policy: ReflexPolicy,
    now: float,
) -> Cause | None:
    """Return what ejects the endpoint after a poor answer that its detector of those has just been told of, or None.

    `peers` are the windows of the model's other endpoints. Some requests end so wherever they are sent, and a retry
    takes them from one endpoint to the next: where in the last minute two others (or all there are) gave half as many
    poor answers, or gave them half as often, the requests are to blame.
    """
    cause = _evidence("quality_evidence", window, detector, policy, now)
    if cause is None or not TRAITS[outcome].hinges_on_request:
        return cause
    own = window.sums(now, RATE_SPAN_S)
    alike = [_as_poor(peer.sums(now, RATE_SPAN_S), own) for peer in peers]
    return None if alike and sum(alike) >= min(2, len(alike)) else cause


def _as_poor(peer: Sums, own: Sums) -> bool:
    theirs, most = peer[Counter.POOR_ANSWER], own[Counter.POOR_ANSWER] / 2
    return theirs >= most or (theirs >= 2 and theirs * own.judged >= most * peer.judged)


def _evidence(metric: str, window: Window, detector: FailureDetector, policy: ReflexPolicy, now: float) -> Cause | None:
    attempts_per_s = window.sums(now, RATE_SPAN_S).judged / RATE_SPAN_S
    threshold = detector.threshold(attempts_per_s, policy.false_alarm_every_s)
    return Cause(metric, detector.evidence, threshold) if detector.evidence >= threshold else None


def slow(window: Window, policy: ReflexPolicy, now: float, evidence_from: float, margin_z: float = 0.0) -> Cause | None:
    """Return what degrades the endpoint for its latency, its pace or attempts that are overdue, or None. Latency and
    pace have to exceed their limits by `margin_z` standard errors.
    """
    span_s = min(SPAN_S, int(now) - int(evidence_from))
    if span_s >= 1:
        for metric, shift, ratio in (
            ("latency_ratio", window.latency_shift(now, span_s), policy.latency_ratio),
            ("pace_ratio", window.pace_shift(now, span_s), policy.pace_ratio),
        ):
            limit = ratio * exp(margin_z * shift.standard_error)
            if _stands_out(shift, limit, policy):
                return Cause(metric, shift.ratio, limit)
    # What was sent a moment ago is not overdue, so the cheap test comes first.
    if window.oldest_s(now) <= policy.hang_floor_s:
        return None
    return _hanging(window, policy, now, evidence_from) or _crawling(window, policy, now, evidence_from)


def _stands_out(shift: Shift, ratio: float, policy: ReflexPolicy) -> bool:
    return (
        shift.samples >= policy.min_latency_samples
        and shift.ratio >= ratio
        and log(shift.ratio) >= policy.latency_z * shift.standard_error
    )


def hang_limit_s(window: Window, policy: ReflexPolicy, now: float, *, streamed: bool) -> float | None:
    """Return the wait for a first byte beyond which an attempt hangs; None while the endpoint's own normal is not
    known.
    """
    if window.baseline(now)[Counter.TTFT_N if streamed else Counter.REPLY_N] < _MIN_HANG_SAMPLES:
        return None
    usual_s = window.latency_quantile(0.95, now, streamed=streamed)
    return None if usual_s is None else max(policy.hang_floor_s, policy.hang_ratio * usual_s)


def blame_after_s(window: Window, policy: Policy, now: float, *, streamed: bool) -> float:
    """Return how long a first byte may take before a timeout is the endpoint's fault although its caller was in haste.

    While the endpoint's normal is unknown, that is a fifth of the policy's own patience: what hangs from the start
    never gets a normal, and would otherwise be excused for ever.
    """
    limit_s = hang_limit_s(window, policy.reflex, now, streamed=streamed)
    if limit_s is not None:
        return limit_s
    return _UNKNOWN_PATIENCE * (policy.attempts.ttft_timeout_s if streamed else policy.attempts.reply_timeout_s)


def crawl_limit_s(window: Window, policy: ReflexPolicy, now: float) -> float | None:
    """Return the time from a stream's first byte beyond which it crawls; None while the endpoint's own normal is not
    known, as of a young one whose long streams have not ended yet.
    """
    baseline = window.baseline(now)
    if baseline[Counter.GENERATION_N] < _MIN_HANG_SAMPLES:
        return None
    limit_s = policy.pace_ratio * baseline.ninety_fifth(Counter.GENERATION_N)
    return None if window.baseline_s(now) < limit_s else max(policy.hang_floor_s, limit_s)


def overdue_streams(window: Window, now: float, since: float) -> int:
    """Return how many streams that began at `since` or later have run longer than 95 % of them normally do; 0 while the
    endpoint's own normal is not known.
    """
    streams, baseline = window.streaming(), window.baseline(now)
    if not streams or baseline[Counter.GENERATION_N] < _MIN_HANG_SAMPLES:
        return 0
    due = now - baseline.ninety_fifth(Counter.GENERATION_N)
    return sum(begun >= since for begun in takewhile(due.__gt__, streams))


def lost(window: Window, policy: ReflexPolicy, now: float) -> list[float]:
    """Give up the attempts that have waited so long for a first byte that they count as failed; return when each was
    sent, each attempt once.

    That an endpoint is slow is no failure: the wait is twice what degrades it, and what ends well after all is taken
    back.
    """
    found: list[float] = []
    if window.oldest_s(now) <= policy.lost_ratio * policy.hang_floor_s:
        return found
    for streamed in (True, False):
        oldest = next(iter(window.waiting(streamed=streamed)), now)
        if now - oldest > policy.lost_ratio * policy.hang_floor_s:
            limit_s = hang_limit_s(window, policy, now, streamed=streamed)
            if limit_s is not None:
                found += window.give_up(now, policy.lost_ratio * limit_s, streamed=streamed)
    return found


def _hanging(window: Window, policy: ReflexPolicy, now: float, since: float) -> Cause | None:
    for streamed, served in ((True, Counter.TTFT_N), (False, Counter.REPLY_N)):
        waiting = window.waiting(streamed=streamed)
        if now - next(iter(waiting), now) > policy.hang_floor_s:
            limit_s = hang_limit_s(window, policy, now, streamed=streamed)
            if limit_s is not None:
                within = window.sums(now, min(SECONDS, ceil(limit_s)))[served]
                oldest = _overdue(waiting, now - limit_s, since, _needed(policy.min_hanging, within, policy))
                if oldest is not None:
                    return Cause("waiting_s", now - oldest, limit_s)
    return None


def _crawling(window: Window, policy: ReflexPolicy, now: float, since: float) -> Cause | None:
    streams = window.streaming()
    if now - next(iter(streams), now) <= policy.hang_floor_s:
        return None
    limit_s = crawl_limit_s(window, policy, now)
    if limit_s is None:
        return None
    within = window.sums(now, min(SECONDS, ceil(limit_s)))[Counter.TTFT_N]
    # Lengths of answers have a heavier tail than waits, and a few long ones in a row are usual: it takes as many as for
    # the pace of those that end.
    oldest = _overdue(streams, now - limit_s, since, _needed(policy.min_latency_samples, within, policy))
    return None if oldest is None else Cause("streaming_s", now - oldest, limit_s)


def _needed(least: int, within: float, policy: ReflexPolicy) -> float:
    """Return how many must be overdue where `within` were served in time: `least` of them and their share of all that
    came, since a busy endpoint always has some that take unusually long.
    """
    return max(least, policy.overdue_share / (1 - policy.overdue_share) * within)


def _overdue(begun: Iterable[float], due: float, since: float, needed: float) -> float | None:
    """Return when the oldest of what is overdue began, if `needed` are: begun before `due`, and at `since` or later.

    `begun` are times, oldest first.
    """
    count, oldest = 0, due
    for time in begun:
        if time >= due:
            return None
        if time >= since:
            count, oldest = count + 1, min(oldest, time)
            if count >= needed:
                return oldest
    return None


def still_slow(window: Window, policy: ReflexPolicy, now: float) -> bool:
    """Tell whether a slow endpoint has not recovered yet: ratios must fall to their threshold's square root
    (hysteresis), and nothing may be overdue.

    Streams that began more than twice the limit ago tell of the past, however long they crawl on.
    """
    for shift, ratio in (
        (window.latency_shift(now, SPAN_S), policy.latency_ratio),
        (window.pace_shift(now, SPAN_S), policy.pace_ratio),
    ):
        if shift.samples > 0 and shift.ratio >= sqrt(ratio):
            return True
    if _hanging(window, policy, now, 0.0) is not None:
        return True
    limit_s = crawl_limit_s(window, policy, now)
    return limit_s is not None and _crawling(window, policy, now, now - 2 * limit_s) is not None
