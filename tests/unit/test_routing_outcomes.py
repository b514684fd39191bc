"""The outcomes table is complete, and says of each end what the rest of the core relies on."""

import pytest

from routing.outcomes import TRAITS, Outcome, Signal
from routing.window import COUNTER_OF, Counter


def test_every_outcome_has_traits_and_a_counter() -> None:
    assert set(TRAITS) == set(COUNTER_OF) == set(Outcome)


@pytest.mark.parametrize(
    ("signal", "outcomes"),
    [
        (Signal.SUCCESS, "ok"),
        (Signal.FAILURE, "server_error timeout connect_error stalled truncated malformed"),
        (Signal.QUOTA, "rate_limited"),
        (Signal.CREDENTIAL, "auth_error"),
        (Signal.NOTHING, "client_error cancelled"),
    ],
)
def test_each_outcome_feeds_one_signal(signal: Signal, outcomes: str) -> None:
    assert {o.value for o in Outcome if TRAITS[o].signal is signal} == set(outcomes.split())


def test_only_an_endpoint_that_cannot_be_reached_is_a_hard_failure() -> None:
    assert [o for o in Outcome if TRAITS[o].hard] == [Outcome.CONNECT_ERROR]


def test_what_was_never_processed_may_be_repeated() -> None:
    unprocessed = {o for o in Outcome if not TRAITS[o].may_have_executed}
    assert unprocessed == {Outcome.RATE_LIMITED, Outcome.CONNECT_ERROR, Outcome.AUTH_ERROR, Outcome.CLIENT_ERROR}


def test_the_callers_own_end_is_not_retried() -> None:
    assert {o for o in Outcome if not TRAITS[o].retry_elsewhere} == {
        Outcome.OK,
        Outcome.CLIENT_ERROR,
        Outcome.CANCELLED,
    }


def test_failures_of_the_window_are_exactly_the_outcomes_that_signal_failure() -> None:
    counters = {COUNTER_OF[o] for o in Outcome if TRAITS[o].signal is Signal.FAILURE}
    assert counters == {Counter.SERVER_ERROR, Counter.TIMEOUT, Counter.CONNECT_ERROR, Counter.BROKEN}
