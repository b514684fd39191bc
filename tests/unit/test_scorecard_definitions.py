"""Each metric of the scorecard on logs made by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from sim.arena.incidents import ArenaKind
from sim.arena.log import Log
from sim.arena.truth import Trouble
from sim.scorecard import definitions
from sim.scorecard.definitions import METRICS, Evidence, avoidable_removed, measure
from sim.scorecard.shares import shares_of

NORMAL_S = 0.4


def log_of(
    first: Callable[[float], int] = lambda _: 0,
    *,
    duration_s: int = 2000,
    rate: int = 2,
    warned: Sequence[tuple[float, int, bool]] = (),
    probes: int = 0,
    hedged: int = 0,
) -> Log:
    """A request every 1 / `rate` seconds, sent where `first` says, all answered after 0.4 s for 1 ¢."""
    arrival_s = np.arange(duration_s * rate) / rate
    n = len(arrival_s)
    return Log(
        endpoints=3,
        duration_s=float(duration_s),
        arrival_s=arrival_s,
        first=np.array([first(float(t)) for t in arrival_s], dtype=np.int64),
        attempts=np.ones(n, dtype=np.int64),
        failed=np.zeros(n, dtype=np.bool_),
        hedged=np.arange(n) < hedged,
        ttft_s=np.full(n, NORMAL_S),
        cost_usd=np.full(n, 0.01),
        probe_s=np.arange(probes, dtype=np.float64),
        probe_endpoint=np.zeros(probes, dtype=np.int64),
        probe_cost_usd=np.full(probes, 0.001),
        warned_s=np.array([w[0] for w in warned], dtype=np.float64),
        warned_endpoint=np.array([w[1] for w in warned], dtype=np.int64),
        warned_on=np.array([w[2] for w in warned], dtype=np.bool_),
    )


def away(begin_s: float, end_s: float, to: int = 1) -> Callable[[float], int]:
    """All to the preferred endpoint, but to `to` in [begin_s, end_s)."""
    return lambda t: to if begin_s <= t < end_s else 0


def evidence(log: Log, *incidents: tuple[int, float, float]) -> Evidence:
    """Evidence with incidents (endpoint, onset, end)."""
    return Evidence(log, [Trouble(ArenaKind.QUEUE, *incident) for incident in incidents], NORMAL_S)


def test_a_share_is_of_the_last_ten_seconds() -> None:
    shares = shares_of(log_of(away(100, 200)))
    # At 102.5 s the 20 requests since 93 s count, six of them sent away.
    assert shares.at(0, 102.6) == pytest.approx(14 / 20)
    assert shares.at(1, 102.6) == pytest.approx(6 / 20)
    assert shares.at(0, 109.5) == 0
    assert shares.at(0, 1.0) is None
    assert np.allclose(shares.share.sum(axis=0), 1)


def test_a_share_of_thin_traffic_is_of_the_last_five_requests() -> None:
    log = log_of(away(100, 200), duration_s=1000, rate=1)
    thin = replace(log, arrival_s=log.arrival_s * 60, duration_s=60_000.0)
    shares = shares_of(thin)
    assert [shares.at(1, 60 * t) for t in (99, 100, 102, 104)] == pytest.approx([0, 0.2, 0.6, 1.0])


def test_a_refused_request_counts_for_no_endpoint() -> None:
    shares = shares_of(log_of(lambda t: -1 if t >= 100 else 0))
    assert shares.share[:, -1].tolist() == [0, 0, 0]


def test_bad_is_failed_or_slower_than_three_times_the_normal() -> None:
    log = log_of()
    log.failed[:10] = True
    log.ttft_s[:10] = np.nan
    log.ttft_s[10:30] = 3 * NORMAL_S + 0.001
    log.ttft_s[30:50] = 3 * NORMAL_S - 0.001
    assert definitions.bad_per_1k(evidence(log)) == pytest.approx(30 / 4000 * 1000)
    assert definitions.failed_per_1k(evidence(log)) == pytest.approx(10 / 4000 * 1000)


def test_a_request_that_failed_after_a_slow_first_token_is_bad_once() -> None:
    log = log_of()
    log.failed[:4], log.ttft_s[:4] = True, 9.0
    assert definitions.bad_per_1k(evidence(log)) == pytest.approx(1.0)


def test_ttft_percentiles_are_of_requests_with_a_first_token() -> None:
    log = log_of(duration_s=500)
    log.ttft_s[:] = np.arange(1, 1001) / 1000
    assert definitions.ttft_p95_ms(evidence(log)) == pytest.approx(950, abs=0.1)
    assert definitions.ttft_p99_ms(evidence(log)) == pytest.approx(990, abs=0.1)
    log.ttft_s[900:] = np.nan
    assert definitions.ttft_p99_ms(evidence(log)) == pytest.approx(891, abs=0.2)
    log.ttft_s[:] = np.nan
    assert definitions.ttft_p95_ms(evidence(log)) is None


def test_detection_is_from_onset_until_a_tenth_is_left() -> None:
    # Sent away from 520 s on, the share of ten seconds falls to 10 % with the 18th of 20 requests, at 528.5 s.
    run = evidence(log_of(away(520, 700)), (0, 500.0, 700.0))
    assert definitions.detect_s(run) == pytest.approx(28.5)
    assert definitions.missed(run) == 0


def test_what_was_never_detected_counts_whole_and_what_had_left_before_counts_zero() -> None:
    log = log_of(away(1400, 1600))
    run = evidence(log, (0, 500.0, 560.0), (0, 1500.0, 1600.0))
    assert definitions.detect_s(run) == pytest.approx((60 + 0) / 2)
    assert definitions.missed(run) == 0.5


def test_an_incident_without_traffic_before_it_is_no_evidence() -> None:
    run = evidence(log_of(away(100, 1900)), (0, 1000.0, 1100.0), (2, 500.0, 600.0))
    assert definitions.detect_s(run) is None
    assert definitions.early_recall(run) is None
    assert definitions.missed(run) is None


def test_early_is_at_most_half_at_onset_and_lead_is_since_when() -> None:
    # 50 % is reached with the tenth of 20 requests, 4.5 s after the diversion begins.
    run = evidence(log_of(away(450, 700)), (0, 500.0, 700.0))
    assert definitions.early_recall(run) == 1
    assert definitions.lead_s(run) == pytest.approx(500 - 454.5)
    late = evidence(log_of(away(497, 700)), (0, 500.0, 700.0))
    assert definitions.early_recall(late) == 0
    assert definitions.lead_s(late) is None


def test_a_warning_within_300_s_before_onset_is_early() -> None:
    warned = evidence(log_of(warned=[(420.0, 0, True), (460.0, 0, False)]), (0, 500.0, 600.0))
    assert (definitions.early_recall(warned), definitions.lead_s(warned)) == (1, 80)
    still = evidence(log_of(warned=[(100.0, 0, True)]), (0, 500.0, 600.0))
    assert (definitions.early_recall(still), definitions.lead_s(still)) == (1, 300)
    for changes in (
        [(50.0, 0, True), (150.0, 0, False)],  # over before the 300 s
        [(501.0, 0, True)],  # after onset
        [(450.0, 1, True)],  # of another endpoint
    ):
        assert definitions.early_recall(evidence(log_of(warned=changes), (0, 500.0, 600.0))) == 0


def test_a_balanced_policy_cannot_be_early_by_sharing() -> None:
    def turns(t: float) -> int:
        return int(t * 2) % 3

    assert definitions.early_recall(evidence(log_of(turns), (0, 500.0, 600.0))) is None
    warned = log_of(turns, warned=[(480.0, 0, True)])
    assert definitions.early_recall(evidence(warned, (0, 500.0, 600.0), (1, 500.0, 600.0))) == 0.5


@pytest.mark.parametrize(
    ("onset_s", "end_s", "count"),
    [(1040.0, 1100.0, 0), (1290.0, 1300.0, 0), (1320.0, 1400.0, 1), (900.0, 960.0, 0), (800.0, 930.0, 1)],
)
def test_a_false_failover_has_no_incident_from_60_s_before_to_300_s_after(
    onset_s: float, end_s: float, count: int
) -> None:
    run = evidence(log_of(away(1000, 1100)), (0, onset_s, end_s))
    assert definitions.false_failovers_per_day(run) == pytest.approx(count / 2000 * 86_400)


def test_an_incident_elsewhere_does_not_excuse_a_failover() -> None:
    run = evidence(log_of(away(1000, 1100)), (1, 990.0, 1100.0))
    assert definitions.false_failovers_per_day(run) == pytest.approx(86_400 / 2000)


def test_traffic_that_trembles_around_a_half_is_one_diversion() -> None:
    def trembling(t: float) -> int:
        return 0 if t < 500 else (int(t * 2) // 8) % 2

    assert definitions.false_failovers_per_day(evidence(log_of(trembling))) == pytest.approx(86_400 / 2000)


def test_needless_is_away_from_a_healthy_endpoint_with_no_incident_near() -> None:
    assert definitions.needless_diversion(evidence(log_of(away(1000, 1100)))) == pytest.approx(200 / 4000)
    # From 120 s before onset to 60 s after the end it is excused.
    run = evidence(log_of(away(100, 1900)), (0, 1000.0, 1200.0))
    assert definitions.needless_diversion(run) == pytest.approx((780 + 640 - 0.5) * 2 / 4000, abs=0.001)
    other = evidence(log_of(away(1000, 1100)), (1, 1000.0, 1100.0))
    assert definitions.needless_diversion(other) == pytest.approx(200 / 4000)


def test_a_switch_changes_the_endpoint_with_the_largest_share() -> None:
    assert definitions.switches_per_day(evidence(log_of())) == 0
    there_and_back = evidence(log_of(away(1000, 1100)))
    assert definitions.switches_per_day(there_and_back) == pytest.approx(2 / 2000 * 86_400)
    canary = evidence(log_of(lambda t: 1 if int(t * 2) % 4 == 0 else 0))
    assert definitions.switches_per_day(canary) == 0


def test_hedge_share_is_of_requests() -> None:
    assert definitions.hedge_share(evidence(log_of(hedged=400))) == pytest.approx(0.1)
    assert definitions.hedge_share(evidence(log_of())) == 0


def test_probe_share_is_of_all_calls() -> None:
    log = log_of(probes=1000)
    assert definitions.probe_share(evidence(log)) == pytest.approx(0.2)
    log.attempts[:1000] = 4
    assert definitions.probe_share(evidence(log)) == pytest.approx(1000 / 8000)


def test_cost_counts_every_attempt_and_probe() -> None:
    assert definitions.cost_usd_per_1k(evidence(log_of(probes=4000))) == pytest.approx(10 + 1)


def test_recovery_is_from_the_end_until_nine_tenths_are_back() -> None:
    # Back from 1300 s on, the share of ten seconds is 90 % with the 18th of 20 requests.
    run = evidence(log_of(away(1000, 1300)), (0, 990.0, 1200.0))
    assert definitions.recovery_delay_s(run) == pytest.approx(108.5)


def test_recovery_needs_that_traffic_had_left_and_could_return() -> None:
    assert definitions.recovery_delay_s(evidence(log_of(), (0, 500.0, 600.0))) is None
    overtaken = evidence(log_of(away(500, 1000)), (0, 500.0, 600.0), (0, 700.0, 900.0))
    assert definitions.recovery_delay_s(overtaken) == pytest.approx(108.5)
    never = evidence(log_of(away(500, 2000)), (0, 500.0, 600.0))
    assert definitions.recovery_delay_s(never) == pytest.approx(1400)
    elsewhere = evidence(log_of(away(500, 1000)), (1, 500.0, 600.0))
    assert definitions.recovery_delay_s(elsewhere) is None


def test_avoidable_badness_is_between_static_and_oracle() -> None:
    assert avoidable_removed(30, 50, 10) == pytest.approx(0.5)
    assert avoidable_removed(10, 50, 10) == 1
    assert avoidable_removed(70, 50, 10) == pytest.approx(-0.5)
    assert avoidable_removed(5, 10, 10) is None
    assert avoidable_removed(None, 50, 10) is None


def test_a_run_without_requests_holds_no_evidence() -> None:
    log = log_of(duration_s=0)
    assert {name: value for name, value in measure(evidence(log)).items() if value is not None} == {"requests": 0}


def test_every_metric_is_measured_and_nothing_unbelievable_passes() -> None:
    found = measure(evidence(log_of(away(1000, 1100)), (0, 1000.0, 1100.0)))
    assert found.keys() == METRICS.keys()
    assert found["requests"] == 4000
    spoiled = log_of()
    spoiled.cost_usd[3] = np.nan
    with pytest.raises(ValueError, match="cost_usd_per_1k: expected a finite number"):
        measure(evidence(spoiled))
