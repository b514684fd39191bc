"""The reflex acts exactly at its thresholds, not one observation before."""

import pytest

from routing.outcomes import Outcome
from routing.policy import ReflexPolicy
from routing.reflex import breach, slow, still_slow
from routing.window import Window

POLICY = ReflexPolicy(hang_floor_s=1.0, hang_ratio=4.0)
LONG_AGO = -1e9


def _window(*outcomes: Outcome, now: float = 1000.0) -> Window:
    window = Window()
    for outcome in outcomes:
        window.finished("a", outcome, now)
    return window


def _with_history(ttft_s: float, recent_s: float, recent: int) -> Window:
    """Ten minutes at `ttft_s`, then `recent` values of `recent_s` in the second 1000."""
    window = Window()
    for second in range(400, 980):
        window.finished("a", Outcome.OK, float(second), ttft_s=ttft_s)
    for _ in range(recent):
        window.finished("a", Outcome.OK, 1000.0, ttft_s=recent_s)
    return window


def test_f01_a_hard_failure_needs_no_company() -> None:
    cause = breach(_window(Outcome.CONNECT_ERROR), Outcome.CONNECT_ERROR, POLICY, 1000.0, LONG_AGO)
    assert cause is not None
    assert cause.metric == "connect_error"


@pytest.mark.parametrize(("failures", "breached"), [(2, False), (3, True)])
def test_f01_failures_in_a_row(failures: int, breached: bool) -> None:
    window = _window(*[Outcome.OK] * 40, *[Outcome.TIMEOUT] * failures)
    cause = breach(window, Outcome.TIMEOUT, POLICY, 1000.0, LONG_AGO)
    assert (cause is not None) == breached
    if cause:
        assert (cause.metric, cause.value, cause.threshold) == ("consecutive_failures", 3.0, 3.0)


@pytest.mark.parametrize(
    ("ok", "failed", "breached"), [(2, 2, False), (3, 2, False), (3, 3, True), (2, 3, True), (51, 49, False)]
)
def test_f01_error_rate_with_enough_attempts(ok: int, failed: int, breached: bool) -> None:
    policy = ReflexPolicy(consecutive_failures=1000)
    window = _window(*[Outcome.SERVER_ERROR] * failed, *[Outcome.OK] * ok)
    cause = breach(window, Outcome.SERVER_ERROR, policy, 1000.0, LONG_AGO)
    assert (cause is not None) == breached
    if cause:
        assert cause.value == failed / (ok + failed) >= cause.threshold


def test_rate_limits_and_cancellations_do_not_dilute_or_raise_the_error_rate() -> None:
    policy = ReflexPolicy(consecutive_failures=1000)
    noise = [Outcome.RATE_LIMITED, Outcome.CANCELLED, Outcome.CLIENT_ERROR, Outcome.AUTH_ERROR] * 25
    window = _window(*noise, *[Outcome.STALLED] * 3, *[Outcome.OK] * 2)
    cause = breach(window, Outcome.STALLED, policy, 1000.0, LONG_AGO)
    assert cause is not None
    assert cause.value == 0.6


def test_f06_a_return_starts_with_a_clean_slate() -> None:
    policy = ReflexPolicy(consecutive_failures=1000)
    window = _window(*[Outcome.SERVER_ERROR] * 10, now=1000.0)
    assert breach(window, Outcome.SERVER_ERROR, policy, 1001.0, LONG_AGO) is not None
    assert breach(window, Outcome.SERVER_ERROR, policy, 1001.0, evidence_from=1000.5) is None


@pytest.mark.parametrize(("recent_s", "found"), [(0.59, False), (0.6001, True)])
def test_f01_latency_against_the_own_baseline(recent_s: float, found: bool) -> None:
    cause = slow(_with_history(0.2, recent_s, 5), POLICY, 1000.0, LONG_AGO)
    assert (cause is not None) == found
    if cause:
        assert cause.value == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize(("samples", "found"), [(4, False), (5, True)])
def test_few_slow_values_prove_nothing(samples: int, found: bool) -> None:
    assert (slow(_with_history(0.2, 2.0, samples), POLICY, 1000.0, LONG_AGO) is not None) == found


@pytest.mark.parametrize(("waited_s", "found"), [(3.9, False), (4.5, True)])
def test_f12_attempts_that_hang_are_noticed_against_the_usual_latency(waited_s: float, found: bool) -> None:
    window = _with_history(1.0, 1.0, 0)
    for attempt in "ab":
        window.started(attempt, 1000.0)
    cause = slow(window, POLICY, 1000.0 + waited_s, LONG_AGO)
    assert (cause is not None) == found
    if cause:
        assert cause.metric == "oldest_waiting_s"
        assert cause.threshold == pytest.approx(4.0, rel=0.05)


def test_one_attempt_that_waits_long_is_no_hang() -> None:
    window = _with_history(0.2, 0.2, 0)
    window.started("a", 1000.0)
    assert slow(window, POLICY, 1100.0, LONG_AGO) is None
    window.started("b", 1000.0)
    assert slow(window, POLICY, 1100.0, LONG_AGO) is not None


@pytest.mark.parametrize(("recent_s", "still"), [(0.34, False), (0.35, True), (0.59, True)])
def test_f06_the_latency_must_fall_well_below_the_threshold_to_count_as_recovered(recent_s: float, still: bool) -> None:
    window = _with_history(0.2, recent_s, 5)
    assert slow(window, POLICY, 1000.0, LONG_AGO) is None
    assert still_slow(window, POLICY, 1000.0) is still
