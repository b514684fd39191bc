"""The reflex acts exactly at its thresholds, not one observation before."""

from math import exp, inf, log, sqrt

import pytest

from routing.detector import FailureDetector
from routing.health import Cause
from routing.outcomes import TRAITS, Outcome
from routing.policy import ReflexPolicy
from routing.reflex import (
    breach,
    crawl_limit_s,
    hang_limit_s,
    lost,
    normal_failure_rate,
    normal_poor_rate,
    poor_breach,
    slow,
    still_slow,
)
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


def _spread_out(ratio: float) -> Window:
    """Ten minutes around 1 at a log spread of 1, then five values of `ratio`: they have a standard error of 0.447."""
    window = Window()
    for second in range(400, 980):
        window.finished("a", Outcome.OK, float(second), ttft_s=exp(1 if second % 2 else -1))
    for _ in range(5):
        window.finished("a", Outcome.OK, 1000.0, ttft_s=ratio)
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
    """Four standard errors are a ratio of 5.98."""
    assert (slow(_spread_out(ratio), POLICY, 1000.0, LONG_AGO) is not None) == found


@pytest.mark.parametrize(("ratio", "found"), [(6.1, False), (6.3, True)])
def test_f09_with_a_margin_the_cause_names_the_limit_that_applied(ratio: float, found: bool) -> None:
    """A limit of 2.5 becomes 6.12 by two standard errors."""
    cause = slow(_spread_out(ratio), POLICY, 1000.0, LONG_AGO, margin_z=2.0)
    assert (cause is not None) == found
    if cause:
        assert cause.threshold == pytest.approx(2.5 * exp(2 / sqrt(5)), rel=1e-2)


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


def _poorly(share: float, judged: int, now: float = 1000.0) -> Window:
    """An endpoint that has answered `share` of its attempts with nothing, ten minutes ago and before."""
    window = Window()
    for i in range(judged):
        outcome = Outcome.EMPTY if i < share * judged else Outcome.OK
        window.finished("a", outcome, now - 900 + i * 300 / judged, ttft_s=0.2)
    return window


def test_f01_failures_and_poor_answers_each_have_a_normal_of_their_own() -> None:
    failing, poor = _with_failures(0.1, 380), _poorly(0.1, 380)
    own = (38 + 0.4) / 400
    for rate, of_failing, of_poor in ((normal_failure_rate, own, 0.02), (normal_poor_rate, 0.02, own)):
        assert rate(failing, POLICY, 1000.0) == pytest.approx(of_failing)
        assert rate(poor, POLICY, 1000.0) == pytest.approx(of_poor)


def _poor_breach(outcome: Outcome, own: Window, *peers: Window, count: int = 8) -> Cause | None:
    """Return what the last of `count` poor answers at 1000 leads to."""
    detector = FailureDetector(POLICY.failing_rate, POLICY.normal_rate)
    for _ in range(count):
        own.finished("a", outcome, 1000.0)
        detector.failed(hard=False)
    return poor_breach(own, detector, outcome, peers, POLICY, 1000.0)


@pytest.mark.parametrize(("served", "count"), [(0, 2), (60, 4), (600, 4)])
def test_f01_poor_answers_eject_once_chance_cannot_explain_them(served: int, count: int) -> None:
    assert _poor_breach(Outcome.TRUNCATED, _window(*[Outcome.OK] * served, now=999.0), count=count - 1) is None
    cause = _poor_breach(Outcome.TRUNCATED, _window(*[Outcome.OK] * served, now=999.0), count=count)
    assert cause is not None
    assert cause.metric == "quality_evidence"
    assert cause.value == pytest.approx(count * log(0.3 / 0.02))
    assert cause.value >= cause.threshold


def _peer(poor: int, served: int, now: float = 1000.0) -> Window:
    return _window(*[Outcome.EMPTY] * poor, *[Outcome.OK] * served, now=now)


@pytest.mark.parametrize(
    ("peers", "found"),
    [
        ([], True),
        ([_peer(0, 100)], True),
        ([_peer(3, 100)], True),
        ([_peer(4, 100)], False),
        ([_peer(1, 1)], True),
        ([_peer(2, 2)], False),
        ([_peer(2, 7)], True),
        ([_peer(8, 0), _peer(0, 100)], True),
        ([_peer(8, 0), _peer(8, 0), _peer(0, 100), _peer(0, 0)], False),
        ([_peer(8, 0, now=939.0)], True),
    ],
)
def test_f06_what_follows_the_requests_to_other_endpoints_is_not_this_ones_fault(
    peers: list[Window], found: bool
) -> None:
    """Eight poor answers and eight good ones here: half as many elsewhere, or half as often, and not a minute ago."""
    own = _window(*[Outcome.OK] * 8, now=999.0)
    assert (_poor_breach(Outcome.REFUSED_FORMAT, own, *peers) is not None) == found


def test_f01_a_broken_answer_is_the_endpoints_fault_whatever_its_peers_do() -> None:
    assert _poor_breach(Outcome.MALFORMED, Window(), _peer(8, 0), _peer(8, 0)) is not None


def _streaming_at(pace_s: float, recent_pace_s: float, recent: int) -> Window:
    """Ten minutes of streams of 100 tokens at `pace_s` a token, then `recent` at `recent_pace_s` in the second 1000."""
    window = Window()
    for second in range(400, 980):
        window.finished("a", Outcome.OK, float(second), ttft_s=0.2, output_tokens=100, generation_s=100 * pace_s)
    for _ in range(recent):
        window.finished("a", Outcome.OK, 1000.0, ttft_s=0.2, output_tokens=100, generation_s=100 * recent_pace_s)
    return window


@pytest.mark.parametrize(
    ("recent_pace_s", "recent", "found"), [(0.0599, 5, False), (0.0601, 5, True), (0.0601, 4, False)]
)
def test_f01_pace_against_the_own_baseline(recent_pace_s: float, recent: int, found: bool) -> None:
    window = _streaming_at(0.02, recent_pace_s, recent)
    cause = slow(window, POLICY, 1000.0, LONG_AGO)
    assert (cause is not None) == found
    if cause:
        assert (cause.metric, cause.threshold) == ("pace_ratio", 3.0)
        assert cause.value == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(("recent_pace_s", "still"), [(0.0346, False), (0.0347, True)])
def test_f06_the_pace_must_come_well_below_the_threshold_to_count_as_recovered(
    recent_pace_s: float, still: bool
) -> None:
    assert still_slow(_streaming_at(0.02, recent_pace_s, 5), POLICY, 1000.0) is still


def _streams(window: Window, first_byte: float, names: str = "abcde") -> Window:
    for attempt in names:
        window.started(attempt, first_byte - 0.2)
        window.first_byte(attempt, first_byte)
    return window


@pytest.mark.parametrize(("streamed_s", "found"), [(5.9, False), (6.1, True)])
def test_f01_streams_that_run_on_are_noticed_against_the_usual_length(streamed_s: float, found: bool) -> None:
    cause = slow(_streams(_streaming_at(0.02, 0.02, 0), 1000.0), POLICY, 1000.0 + streamed_s, LONG_AGO)
    assert (cause is not None) == found
    if cause:
        assert cause.metric == "streaming_s"
        assert (cause.value, cause.threshold) == pytest.approx((streamed_s, 6.0), rel=0.01)


def test_f06_a_few_long_answers_are_no_crawl() -> None:
    assert slow(_streams(_streaming_at(0.02, 0.02, 0), 1000.0, "abcd"), POLICY, 1060.0, LONG_AGO) is None


def test_f06_streams_from_before_a_return_do_not_count_against_it() -> None:
    window = _streams(_streaming_at(0.02, 0.02, 0), 1000.0)
    assert slow(window, POLICY, 1007.0, 1000.0) is not None
    assert slow(window, POLICY, 1007.0, 1000.1) is None


def test_f06_streams_that_crawl_on_tell_of_the_past_in_the_end() -> None:
    window = _streams(_streaming_at(0.02, 0.02, 0), 1000.0)
    assert still_slow(window, POLICY, 1011.9)
    assert not still_slow(window, POLICY, 1012.1)


def test_a_young_endpoint_has_not_seen_its_long_streams_end() -> None:
    window = Window()
    for second in range(1, 60):
        window.finished("a", Outcome.OK, float(second), ttft_s=0.2, output_tokens=100, generation_s=10.0)
    assert crawl_limit_s(window, POLICY, 44.0) is None
    assert crawl_limit_s(window, POLICY, 46.5) == pytest.approx(30.0)


@pytest.mark.parametrize(("overdue", "found"), [(5, False), (6, True)])
def test_f06_a_busy_endpoint_may_have_some_that_are_overdue(overdue: int, found: bool) -> None:
    """A tenth of those that came: of 50 served within the limit of 4 s, and of those that wait beyond it."""
    window = _with_history(1.0, 1.0, 0)
    for i in range(50):
        window.finished("a", Outcome.OK, 1001.5 + i / 25, ttft_s=1.0)
    for attempt in range(overdue):
        window.started(f"a{attempt}", 1000.0)
    assert (slow(window, POLICY, 1004.5, LONG_AGO) is not None) == found


@pytest.mark.parametrize("streamed", [True, False])
def test_f12_an_attempt_counts_as_failed_once_after_twice_its_hang_limit(streamed: bool) -> None:
    window = Window()
    for second in range(400, 980):
        latency_s = {"ttft_s": 1.0} if streamed else {"reply_s": 1.0}
        window.finished("a", Outcome.OK, float(second), **latency_s)  # type: ignore[arg-type]  # one field of the two
    limit_s = hang_limit_s(window, POLICY, 1000.0, streamed=streamed)
    assert limit_s is not None
    assert limit_s == pytest.approx(4.0, rel=0.05)
    for i, attempt in enumerate("abc"):
        window.started(attempt, 1000.0 + i, streamed=streamed)
    assert lost(window, POLICY, 1000.0 + 2 * limit_s - 0.01) == []
    assert lost(window, POLICY, 1001.0 + 2 * limit_s + 0.01) == [1000.0, 1001.0]
    assert lost(window, POLICY, 1001.0 + 2 * limit_s + 0.02) == []
    assert lost(window, POLICY, 1060.0) == [1002.0]


def test_nothing_is_lost_while_normal_is_unknown() -> None:
    window = Window()
    for attempt in "abc":
        window.started(attempt, 1000.0)
    assert lost(window, POLICY, 1100.0) == []
