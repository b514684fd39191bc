"""The discipline of several attempts for one request: whether it may be tried again, where, after what wait, and how
much time an attempt may take.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import exp

from routing.counts import MIN_BASELINE, Counter
from routing.filters import already_tried, out_of_service, rate_limited
from routing.outcomes import TRAITS, Outcome
from routing.pipeline import Considered, Decision
from routing.policy import AttemptPolicy, BudgetPolicy
from routing.snapshot import Candidate
from routing.window import Window

_LEAST_SPREAD_S = 0.1
# After a limit an endpoint starts with a twentieth of its traffic and doubles that every few seconds: with three tenths
# it stands again. To call it overloaded until it has all back cost a simulated outage half of its retries.
_OVERLOADED_BELOW = 0.3


@dataclass(frozen=True, slots=True)
class RequestBudget:
    """What one request may spend. `deadline` is absolute, on the engine's clock."""

    deadline: float
    idempotent: bool


def refusal_to_retry(
    outcome: Outcome, made: int, emitted: bool, budget: RequestBudget, policy: AttemptPolicy, now: float
) -> str:
    """Return why the request may not be tried on another endpoint after `made` attempts, or "" when it may.

    `emitted` tells that the caller has already seen part of the answer.
    """
    traits = TRAITS[outcome]
    if emitted:
        return "part of the answer has been sent"
    if not traits.retry_elsewhere:
        return f"{outcome.value} would fail elsewhere too"
    if traits.may_have_executed and not budget.idempotent:
        return "the request is not idempotent and may have been executed"
    if made >= policy.max_attempts:
        return f"all {policy.max_attempts} attempts are used"
    if now >= budget.deadline:
        return "the deadline has passed"
    return ""


def first_byte_timeout_s(
    budget: RequestBudget, policy: AttemptPolicy, now: float, *, streamed: bool, others_left: bool
) -> float:
    """Return how long this attempt may wait for its first byte, in seconds.

    While another endpoint is left, the last `reserve_s` of the deadline belong to it; of a deadline shorter than twice
    that, half.
    """
    left_s = max(0.0, budget.deadline - now)
    reserve_s = min(policy.reserve_s, left_s / 2) if others_left else 0.0
    return min(policy.ttft_timeout_s if streamed else policy.reply_timeout_s, left_s - reserve_s)


def usual_tokens_per_s(window: Window, now: float) -> float | None:
    """Return the pace of the endpoint's streams in its own normal time, None while that is not known."""
    baseline = window.baseline(now)
    return exp(-baseline.mean_log(Counter.PACE_N)) if baseline[Counter.PACE_N] >= MIN_BASELINE else None


def crawl_floor_tokens_per_s(policy: AttemptPolicy, usual: float | None, *, can_move: bool) -> float:
    """Return the pace below which a stream crawls, where `usual` is the endpoint's own.

    A stream that cannot go on elsewhere is better slow than cut off, so only next to nothing is a crawl; and never what
    is usual for a slow endpoint.
    """
    if usual is None:
        return policy.crawl_tokens_per_s
    relative = policy.crawl_ratio * usual
    return relative if can_move else min(policy.crawl_tokens_per_s, relative)


def recovering(candidates: Sequence[Candidate]) -> frozenset[str]:
    """Return the endpoints that rate limits have brought below three tenths of their traffic."""
    return frozenset(c.facts.endpoint.id for c in candidates if c.facts.quota_share < _OVERLOADED_BELOW)


def overloaded(candidates: Sequence[Candidate], policy: BudgetPolicy, now: float) -> bool:
    """Tell whether more than `overloaded_share` of a model's `candidates` are paused by a rate limit or recover from
    several.
    """
    limited = sum(c.facts.quota_share < _OVERLOADED_BELOW or c.facts.blocked_until > now for c in candidates)
    return limited > policy.overloaded_share * len(candidates)


def spared_by_retries(candidates: Sequence[Candidate], policy: BudgetPolicy, now: float) -> frozenset[str]:
    """Return the endpoints that a retry must leave in peace: those that recover, when most are overloaded. A pause
    keeps every request away, so paused ones need no sparing.
    """
    return recovering(candidates) if overloaded(candidates, policy, now) else frozenset()


def is_reroute(decision: Decision, left: str) -> bool:
    """Tell whether an attempt after one at the endpoint `left` only undoes a route that is no longer taken: that
    endpoint is out or paused by now, and the next one is chosen for its health, not in despair.
    """
    if decision.panic:
        return False
    failed = [c.candidate for c in decision.considered if c.candidate.facts.endpoint.id == left]
    return any(
        out_of_service(c, decision.request, decision.time) or rate_limited(c, decision.request, decision.time)
        for c in failed
    )


def wait_s(
    decision: Decision,
    limited: Collection[str],
    budget: RequestBudget,
    policy: BudgetPolicy,
    draw: float,
) -> float | None:
    """Return how long to wait after a decision that found nobody, before deciding again; None when that does not help.

    It helps when a rate limit is all that keeps an endpoint away, `max_wait_s` outlasts it, and the deadline outlasts
    the wait. `limited` holds the endpoints that answered this very request with a rate limit: they are not lost for it.
    The wait is the rest of that limit and, so that those who wait do not come back all at once, a random part of as
    long again: `draw`, uniform in [0, 1), of it (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    """
    now = decision.time
    ends = [c.candidate.facts.blocked_until for c in decision.considered if _only_limited(c, limited, decision)]
    if not ends:
        return None
    rest_s = max(0.0, min(ends) - now)
    wait_for_s = rest_s + draw * max(rest_s, _LEAST_SPREAD_S)
    return wait_for_s if rest_s <= policy.max_wait_s and now + wait_for_s < budget.deadline else None


def _only_limited(out: Considered, limited: Collection[str], decision: Decision) -> bool:
    if out.excluded_by != already_tried.__name__:
        return out.excluded_by == rate_limited.__name__
    candidate = out.candidate
    return candidate.facts.endpoint.id in limited and not out_of_service(candidate, decision.request, decision.time)
