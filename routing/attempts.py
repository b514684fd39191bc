"""The discipline of several attempts for one request: whether it may be tried again, where, after what wait, and how
much time an attempt may take.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from routing.counts import MIN_BASELINE, Counter
from routing.filters import already_tried, out_of_service, rate_limited
from routing.outcomes import TRAITS, Outcome
from routing.pipeline import Considered, Decision
from routing.policy import AttemptPolicy, BudgetPolicy
from routing.snapshot import Candidate
from routing.window import Window

_LEAST_SPREAD_S = 0.1
# How long a request leaves an endpoint in peace that refused it without naming a time.
_UNNAMED_S = 1.0
# After a limit an endpoint starts with a twentieth of its traffic and doubles that every few seconds: with three tenths
# it stands again. To call it overloaded until it has all back cost a simulated outage half of its retries.
_OVERLOADED_BELOW = 0.3


@dataclass(frozen=True, slots=True)
class RequestBudget:
    """What one request may spend. `deadline` is absolute, on the engine's clock."""

    deadline: float
    idempotent: bool


@dataclass(slots=True)
class Patience:
    """What one request remembers of rate limits: an endpoint's health moves for evidence, but whoever was refused has
    been told when to come back, and keeps to that.

    `not_before` holds, per endpoint that refused it, the time named then; `waited_until` when its last wait ended,
    `waited_s` how long it has waited in all. Only a wait brings a request back to where it has been.
    """

    not_before: dict[str, float] = field(default_factory=dict)
    waited_until: float = -inf
    waited_s: float = 0.0

    @property
    def has_waited(self) -> bool:
        """A rate limit has kept the request waiting."""
        return self.waited_until > -inf

    def failed(self, endpoint_id: str, outcome: Outcome, retry_after_s: float | None, now: float) -> None:
        """An attempt failed there. Only a rate limit leaves a way back."""
        self.not_before.pop(endpoint_id, None)
        if outcome is Outcome.RATE_LIMITED:
            self.not_before[endpoint_id] = now + (_UNNAMED_S if retry_after_s is None else max(0.0, retry_after_s))

    def waited(self, pause_s: float, until: float) -> None:
        """A wait of `pause_s` ends at `until`."""
        self.waited_s += pause_s
        self.waited_until = until

    def excluded(self, tried: Iterable[str]) -> frozenset[str]:
        """Return who of those `tried` may not be asked again: all whose time had not come when the last wait ended."""
        return frozenset(name for name in tried if self.not_before.get(name, inf) > self.waited_until)


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


def limit_ends_in_s(decision: Decision, patience: Patience) -> float | None:
    """Return after how many seconds the first endpoint may be asked of those that only a rate limit keeps away, None
    without any: once it is over for all, and for the request itself.
    """
    ends = [_end(c.candidate, patience) for c in decision.considered if _only_limited(c, patience, decision)]
    return max(0.0, min(ends) - decision.time) if ends else None


def wait_s(
    decision: Decision, patience: Patience, budget: RequestBudget, policy: BudgetPolicy, draw: float
) -> float | None:
    """Return how long to wait after a decision that found nobody, before deciding again; None when that does not help.

    It helps when a rate limit is all that keeps an endpoint away, and ends before the deadline and within what is left
    of `max_wait_s`, which bounds all waits of a request together. The wait is the rest of that limit and, so that those
    who wait do not come back all at once, a random part of as long again, as far as the bound allows: `draw`, uniform
    in [0, 1), of it (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).
    """
    rest_s, left_s = limit_ends_in_s(decision, patience), policy.max_wait_s - patience.waited_s
    if rest_s is None or left_s <= 0 or rest_s > left_s:
        return None
    pause_s = rest_s + draw * min(max(rest_s, _LEAST_SPREAD_S), left_s - rest_s)
    return pause_s if decision.time + pause_s < budget.deadline else None


def _end(candidate: Candidate, patience: Patience) -> float:
    return max(candidate.facts.blocked_until, patience.not_before.get(candidate.facts.endpoint.id, 0.0))


def _only_limited(out: Considered, patience: Patience, decision: Decision) -> bool:
    if out.excluded_by != already_tried.__name__:
        return out.excluded_by == rate_limited.__name__
    is_limited = out.candidate.facts.endpoint.id in patience.not_before
    return is_limited and not out_of_service(out.candidate, decision.request, decision.time)
