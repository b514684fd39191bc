"""What one request may still do after an attempt, and how long the next one may take."""

import pytest

from routing.attempts import RequestBudget, first_byte_timeout_s, refusal_to_retry
from routing.outcomes import Outcome
from routing.policy import AttemptPolicy

POLICY = AttemptPolicy(max_attempts=3, deadline_s=100.0, ttft_timeout_s=20.0, reply_timeout_s=60.0, reserve_s=30.0)
IDEMPOTENT = RequestBudget(deadline=100.0, idempotent=True)
ONCE = RequestBudget(deadline=100.0, idempotent=False)


def _refusal(
    outcome: Outcome, budget: RequestBudget = IDEMPOTENT, made: int = 1, emitted: bool = False, now: float = 0.0
) -> str:
    return refusal_to_retry(outcome, made, emitted, budget, POLICY, now)


@pytest.mark.parametrize("outcome", [Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.RATE_LIMITED, Outcome.AUTH_ERROR])
def test_f02_a_provider_s_failure_may_be_tried_elsewhere(outcome: Outcome) -> None:
    assert _refusal(outcome) == ""


@pytest.mark.parametrize("outcome", [Outcome.CLIENT_ERROR, Outcome.CANCELLED])
def test_the_caller_s_own_failure_would_fail_elsewhere_too(outcome: Outcome) -> None:
    assert _refusal(outcome) == f"{outcome.value} would fail elsewhere too"


@pytest.mark.parametrize(
    ("outcome", "refused"),
    [
        (Outcome.CONNECT_ERROR, False),
        (Outcome.RATE_LIMITED, False),
        (Outcome.SERVER_ERROR, True),
        (Outcome.TIMEOUT, True),
        (Outcome.STALLED, True),
    ],
)
def test_f04_what_must_not_run_twice_is_repeated_only_when_it_never_ran(outcome: Outcome, refused: bool) -> None:
    assert bool(_refusal(outcome, ONCE)) is refused


def test_nothing_follows_a_first_emitted_byte() -> None:
    for outcome in Outcome:
        assert _refusal(outcome, emitted=True) == "part of the answer has been sent"


@pytest.mark.parametrize(("made", "refusal"), [(2, ""), (3, "all 3 attempts are used")])
def test_attempts_are_capped(made: int, refusal: str) -> None:
    assert _refusal(Outcome.TIMEOUT, made=made) == refusal


@pytest.mark.parametrize(("now", "refusal"), [(99.9, ""), (100.0, "the deadline has passed")])
def test_no_attempt_after_the_deadline(now: float, refusal: str) -> None:
    assert _refusal(Outcome.TIMEOUT, now=now) == refusal


@pytest.mark.parametrize(
    ("now", "streamed", "others_left", "timeout_s"),
    [
        (0.0, True, True, 20.0),
        (0.0, False, True, 60.0),
        (20.0, False, True, 50.0),
        (20.0, False, False, 60.0),
        (60.0, False, True, 20.0),
        (60.0, False, False, 40.0),
        (90.0, True, True, 5.0),
        (90.0, True, False, 10.0),
        (130.0, True, True, 0.0),
    ],
)
def test_time_is_kept_for_the_fallback(now: float, streamed: bool, others_left: bool, timeout_s: float) -> None:
    found = first_byte_timeout_s(IDEMPOTENT, POLICY, now, streamed=streamed, others_left=others_left)
    assert found == pytest.approx(timeout_s)
