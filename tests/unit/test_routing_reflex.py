"""The reflex acts exactly at its thresholds, not one observation before."""

from math import exp, inf, log

import pytest

from routing.detector import FailureDetector
from routing.health import Cause
from routing.outcomes import TRAITS, Outcome
from routing.policy import ReflexPolicy
from routing.reflex import breach, hang_limit_s, normal_failure_rate, slow, still_slow
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


def _breach(outcome: Outcome, failures: int, window: Window, now: float = 1000.0) -> Cause | None:
    """Return what the last of `failures` outcomes at `now` leads to."""
    detector, hard = FailureDetector(POLICY.failing_rate, POLICY.normal_rate), TRAITS[outcome].hard
    for _ in range(failures):
        window.finished("a", outcome, now)
        detector.failed(hard=hard)
    return breach(window, detector, outcome, POLICY, now, hard=hard)


@pytest.mark.parametrize(("silent_s", "found"), [(2.0, False), (2.001, True), (inf, True)])
def test_f01_a_refused_connection_suffices_when_nothing_was_served_for_a_while(silent_s: float, found: bool) -> None:
    window = Window()
    if silent_s < inf:
        window.finished("a", Outcome.OK, 1000.0 - silent_s)
    cause = _breach(Outcome.CONNECT_ERROR, 1, window)
    assert (cause is not None) == found
    if cause:
        assert cause == Cause("connect_error", 1.0, 1.0)


def test_f06_a_refused_connection_among_served_requests_is_noise() -> None:
    assert _breach(Outcome.CONNECT_ERROR, 1, _window(*[Outcome.OK] * 600, now=999.0)) is None


@pytest.mark.parametrize(("served", "failures"), [(0, 2), (60, 4), (600, 4), (3000, 5)])
def test_f01_failures_eject_once_chance_cannot_explain_them(served: int, failures: int) -> None:
    """The busier an endpoint in its last minute, the more failures chance alone would bring together."""
    assert _breach(Outcome.TIMEOUT, failures - 1, _window(*[Outcome.OK] * served, now=999.0)) is None
    cause = _breach(Outcome.TIMEOUT, failures, _window(*[Outcome.OK] * served, now=999.0))
    assert cause is not None
    assert cause.metric == "failure_evidence"
    assert cause.value == pytest.approx(failures * log(0.3 / 0.02))
    assert cause.threshold == pytest.approx(max(1.8 * log(15), log(1 + (served + failures) / 60 * 3600)))


def test_rate_limits_and_cancellations_are_no_traffic_to_the_detector() -> None:
    noise = [Outcome.RATE_LIMITED, Outcome.CANCELLED, Outcome.CLIENT_ERROR, Outcome.AUTH_ERROR] * 250
    cause, alone = _breach(Outcome.STALLED, 2, _window(*noise)), _breach(Outcome.STALLED, 2, Window())
    assert cause == alone is not None


def _with_failures(share: float, judged: int, now: float = 1000.0) -> Window:
    """An endpoint that has failed `share` of its attempts, ten minutes ago and before."""
    window = Window()
    for i in range(judged):
        outcome = Outcome.SERVER_ERROR if i < share * judged else Outcome.OK
        window.finished("a", outcome, now - 900 + i * 300 / judged, ttft_s=0.2)
    return window


@pytest.mark.parametrize(
    ("share", "judged", "rate"),
    [(0.0, 400, 0.02), (0.1, 80, (8 + 0.4) / 100), (0.1, 380, (38 + 0.4) / 400)],
)
def test_the_normal_failure_rate_is_the_endpoint_s_own_drawn_towards_the_policy_s(
    share: float, judged: int, rate: float
) -> None:
    assert normal_failure_rate(_with_failures(share, judged), POLICY, 1000.0) == pytest.approx(rate)


@pytest.mark.parametrize(("recent_s", "found"), [(0.4999, False), (0.5001, True)])
def test_f01_latency_against_the_own_baseline(recent_s: float, found: bool) -> None:
    cause = slow(_with_history(0.2, recent_s, 5), POLICY, 1000.0, LONG_AGO)
    assert (cause is not None) == found
    if cause:
        assert cause.value == pytest.approx(2.5, rel=1e-3)


@pytest.mark.parametrize(("ratio", "found"), [(5.9, False), (6.1, True)])
def test_f06_latency_that_is_always_spread_out_must_stand_out_from_chance(ratio: float, found: bool) -> None:
    """Five values at a log spread of 1 have a standard error of 0.447: four of them are a ratio of 5.98."""
    window = Window()
    for second in range(400, 980):
        window.finished("a", Outcome.OK, float(second), ttft_s=exp(1 if second % 2 else -1))
    for _ in range(5):
        window.finished("a", Outcome.OK, 1000.0, ttft_s=ratio)
    assert (slow(window, POLICY, 1000.0, LONG_AGO) is not None) == found


@pytest.mark.parametrize(("evidence_from", "found"), [(999.9, True), (1000.0, False)])
def test_f06_latency_from_before_a_return_does_not_count_against_it(evidence_from: float, found: bool) -> None:
    assert (slow(_with_history(0.2, 2.0, 9), POLICY, 1000.5, evidence_from) is not None) == found


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
        assert cause.metric == "waiting_s"
        assert cause.threshold == pytest.approx(4.0, rel=0.05)


def test_f06_whole_replies_are_not_measured_by_first_bytes() -> None:
    window = Window()
    for second in range(400, 980):
        window.finished("a", Outcome.OK, float(second), ttft_s=0.3)
        window.finished("a", Outcome.OK, float(second), reply_s=8.0)
    for attempt in "abc":
        window.started(attempt, 1000.0, streamed=False)
    assert slow(window, POLICY, 1030.0, LONG_AGO) is None
    cause = slow(window, POLICY, 1034.0, LONG_AGO)
    assert cause is not None
    assert cause.value == 34.0
    assert cause.threshold == pytest.approx(32.0, rel=0.05)


@pytest.mark.parametrize("streamed", [True, False])
def test_nothing_hangs_while_normal_is_unknown(streamed: bool) -> None:
    window = Window()
    for second in range(10):
        window.finished("a", Outcome.OK, 900.0 + second, ttft_s=0.2)
    for attempt in "abc":
        window.started(attempt, 1000.0, streamed=streamed)
    assert hang_limit_s(window, POLICY, 1060.0, streamed=streamed) is None
    assert slow(window, POLICY, 1060.0, LONG_AGO) is None


def test_one_attempt_that_waits_long_is_no_hang() -> None:
    window = _with_history(0.2, 0.2, 0)
    window.started("a", 1000.0)
    assert slow(window, POLICY, 1100.0, LONG_AGO) is None
    window.started("b", 1000.0)
    assert slow(window, POLICY, 1100.0, LONG_AGO) is not None


@pytest.mark.parametrize(("recent_s", "still"), [(0.316, False), (0.317, True), (0.499, True)])
def test_f06_the_latency_must_fall_well_below_the_threshold_to_count_as_recovered(recent_s: float, still: bool) -> None:
    window = _with_history(0.2, recent_s, 5)
    assert slow(window, POLICY, 1000.0, LONG_AGO) is None
    assert still_slow(window, POLICY, 1000.0) is still
