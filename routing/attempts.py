"""The discipline of several attempts for one request: who may be tried again, and how much time an attempt may take."""

from dataclasses import dataclass

from routing.outcomes import TRAITS, Outcome
from routing.policy import AttemptPolicy


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
