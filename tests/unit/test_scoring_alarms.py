import numpy as np
import pytest

from scoring.alarms import DAY_S, Series, allowed, choose_threshold, endpoint_days, episodes, false_alarms


def series(risks: list[float], incidents: tuple[tuple[float, float], ...] = ()) -> Series:
    return Series(np.arange(len(risks), dtype=np.float64), np.array(risks), incidents)


def test_an_alarm_lasts_until_the_risk_falls_below_half_the_threshold() -> None:
    one = series([0.1, 0.6, 0.3, 0.6, 0.2, 0.4, 0.5, 0.5])
    assert episodes(one.time, one.risk, 0.5) == [(1.0, 3.0), (6.0, 7.0)]


def test_no_risk_no_alarm() -> None:
    assert episodes(np.empty(0), np.empty(0), 0.5) == []
    assert episodes(np.arange(3.0), np.full(3, 0.4), 0.5) == []


@pytest.mark.parametrize(
    ("incident", "expected"),
    [((1300.0, 1400.0), 0), ((1301.0, 1400.0), 1), ((900.0, 940.0), 0), ((900.0, 939.0), 1), ((500.0, 2000.0), 0)],
)
def test_an_alarm_is_false_without_an_incident_60_s_before_to_300_s_after(
    incident: tuple[float, float], expected: int
) -> None:
    time = np.arange(2000.0)
    risk = np.where((time >= 1000) & (time < 1010), 0.9, 0.0)
    assert false_alarms(Series(time, risk, (incident,)), 0.5) == expected


def test_the_threshold_is_the_lowest_that_is_shown_to_keep_the_budget() -> None:
    time = np.arange(DAY_S + 1)
    risk = np.zeros(len(time))
    for i, level in enumerate([0.9, 0.8, 0.7, 0.6, 0.5]):
        risk[1000 * (i + 1)] = level
    quiet = Series(time, risk, ())
    assert endpoint_days([quiet]) == 1.0
    choice = choose_threshold([quiet], 8.0)  # three alarms have an upper bound of 7.75
    assert choice.threshold == pytest.approx(0.61)
    assert choice.false_alarms == 3
    assert choose_threshold([quiet], 3.0).threshold == pytest.approx(0.91)  # none has one of 2.996


def test_with_too_little_evidence_the_strictest_threshold_is_taken() -> None:
    assert choose_threshold([series([0.0, 0.95, 0.0])], 3.0).threshold == 0.98


@pytest.mark.parametrize(
    ("mean", "count"), [(2.99, -1), (3.0, 0), (4.74, 0), (4.75, 1), (7.76, 3), (18.3, 11), (0, -1), (5000.0, 4883)]
)
def test_the_bound_is_that_of_poisson(mean: float, count: int) -> None:
    # Upper limits of a 90 % two-sided interval in Garwood's table: 0: 2.996, 1: 4.744, 3: 7.754, 11: 18.21.
    assert allowed(mean) == count
