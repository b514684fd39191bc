"""The outcomes table is complete, and says of each end what the rest of the core relies on."""

import pytest

from routing.counts import COUNTER_OF, FAILURES, Counter
from routing.outcomes import TRAITS, Outcome, Signal


def test_every_outcome_has_traits_and_a_counter() -> None:
    assert set(TRAITS) == set(COUNTER_OF) == set(Outcome)


@pytest.mark.parametrize(
    ("signal", "outcomes"),
    [
        (Signal.SUCCESS, "ok"),
        (Signal.FAILURE, "server_error timeout connect_error stalled"),
        (Signal.QUALITY, "truncated malformed empty refused_format"),
        (Signal.QUOTA, "rate_limited"),
        (Signal.CREDENTIAL, "auth_error"),
        (Signal.NOTHING, "client_error unsupported cancelled"),
    ],
)
def test_each_outcome_feeds_one_signal(signal: Signal, outcomes: str) -> None:
    assert {o.value for o in Outcome if TRAITS[o].signal is signal} == set(outcomes.split())


def test_only_an_endpoint_that_cannot_be_reached_is_a_hard_failure() -> None:
    assert [o for o in Outcome if TRAITS[o].hard] == [Outcome.CONNECT_ERROR]


def test_what_was_never_processed_may_be_repeated() -> None:
    unprocessed = {o for o in Outcome if not TRAITS[o].may_have_executed}
    assert unprocessed == {
        Outcome.RATE_LIMITED,
        Outcome.CONNECT_ERROR,
        Outcome.AUTH_ERROR,
        Outcome.CLIENT_ERROR,
        Outcome.UNSUPPORTED,
    }


def test_the_callers_own_end_is_not_retried() -> None:
    assert {o for o in Outcome if not TRAITS[o].retry_elsewhere} == {
        Outcome.OK,
        Outcome.CLIENT_ERROR,
        Outcome.CANCELLED,
    }


def test_a_failed_attempt_is_counted_as_what_it_signals() -> None:
    """F-01: poor answers have a counter of their own, failures have theirs, and both fail their caller."""
    counters = {signal: {COUNTER_OF[o] for o in Outcome if TRAITS[o].signal is signal} for signal in Signal}
    assert counters[Signal.FAILURE] == {
        Counter.SERVER_ERROR,
        Counter.TIMEOUT,
        Counter.CONNECT_ERROR,
        Counter.BROKEN,
    }
    assert counters[Signal.QUALITY] == {Counter.POOR_ANSWER}
    failed = {o for o in Outcome if TRAITS[o].failed}
    assert failed == {o for o in Outcome if TRAITS[o].signal in (Signal.FAILURE, Signal.QUALITY)}
    assert set(FAILURES) == {COUNTER_OF[o] for o in failed}
    assert all(TRAITS[o].retry_elsewhere for o in failed)


def test_only_what_an_answer_says_may_hinge_on_what_was_asked() -> None:
    assert {o for o in Outcome if TRAITS[o].hinges_on_request} == {Outcome.EMPTY, Outcome.REFUSED_FORMAT}
