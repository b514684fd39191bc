"""The failure detector's promise: few false alarms whatever the traffic, and few failures until a true one."""

import random
from math import log

import pytest

from routing.detector import FailureDetector

FALSE_ALARM_EVERY_S = 3600.0


def _detector(normal_rate: float = 0.02) -> FailureDetector:
    return FailureDetector(failing_rate=0.3, normal_rate=normal_rate)


def test_evidence_is_the_log_likelihood_ratio_of_failing_against_normal() -> None:
    detector = _detector()
    for _ in range(3):
        detector.failed(hard=False)
    assert detector.evidence == pytest.approx(3 * log(0.3 / 0.02))
    detector.succeeded()
    assert detector.evidence == pytest.approx(3 * log(0.3 / 0.02) - log(0.98 / 0.7))


def test_successes_never_earn_credit_for_later_failures() -> None:
    detector = _detector()
    for _ in range(10_000):
        detector.succeeded()
    assert detector.evidence == 0.0
    detector.failed(hard=False)
    assert detector.evidence == pytest.approx(log(15))


def test_a_refused_connection_weighs_half_as_much_again() -> None:
    soft, hard = _detector(), _detector()
    soft.failed(hard=False)
    hard.failed(hard=True)
    assert hard.evidence == pytest.approx(1.5 * soft.evidence)


def test_a_failure_that_was_none_takes_its_evidence_back() -> None:
    detector = _detector()
    detector.failed(hard=False)
    detector.failed(hard=False)
    detector.retract()
    assert detector.evidence == pytest.approx(log(15))
    detector.succeeded()
    detector.retract()
    assert detector.evidence == 0.0, "never below"


def test_a_new_chance_begins_without_evidence() -> None:
    detector = _detector()
    detector.failed(hard=True)
    detector.clear()
    assert detector.evidence == 0.0


def test_where_failures_are_usual_one_of_them_says_less() -> None:
    used_to_it = _detector()
    used_to_it.learn(0.1)
    used_to_it.failed(hard=False)
    assert used_to_it.evidence == pytest.approx(log(3))


@pytest.mark.parametrize("normal_rate", [0.15, 0.3, 0.99])
def test_a_failure_always_counts_against_the_endpoint(normal_rate: float) -> None:
    detector = _detector(normal_rate)
    detector.failed(hard=False)
    assert detector.evidence == pytest.approx(log(2)), "normal is capped at half of failing"
    detector.succeeded()
    assert detector.evidence < log(2)


def test_the_threshold_grows_with_the_traffic_and_is_never_less_than_two_failures() -> None:
    detector = _detector()
    found = [detector.threshold(rate, FALSE_ALARM_EVERY_S) for rate in (0.0, 0.01, 1.0, 10.0, 50.0)]
    assert found == sorted(found)
    assert log(15) < found[0] < 2 * log(15), "one failure is noise, two of an unused endpoint are not"
    assert found[-1] == pytest.approx(log(1 + 50 * FALSE_ALARM_EVERY_S))


def _attempts_until_alarm(failure_rate: float, per_s: float, seed: int, most: int) -> int:
    rng, detector = random.Random(seed), _detector()
    threshold = detector.threshold(per_s, FALSE_ALARM_EVERY_S)
    for attempt in range(1, most + 1):
        if rng.random() < failure_rate:
            detector.failed(hard=False)
        else:
            detector.succeeded()
        if detector.evidence >= threshold:
            return attempt
    return most


@pytest.mark.parametrize("per_s", [0.2, 1.0, 10.0, 50.0])
def test_f06_false_alarms_are_as_rare_as_asked_at_any_rate(per_s: float) -> None:
    hours = [_attempts_until_alarm(0.02, per_s, seed, int(per_s * 7200)) / per_s / 3600 for seed in range(20)]
    assert sum(hours) / len(hours) > 1.0


@pytest.mark.parametrize(("per_s", "failures"), [(0.01, 2), (1.0, 4), (10.0, 4), (50.0, 5)])
def test_f01_an_outage_is_noticed_within_a_handful_of_failures(per_s: float, failures: int) -> None:
    assert _attempts_until_alarm(1.0, per_s, seed=1, most=100) == failures


@pytest.mark.parametrize("per_s", [1.0, 50.0])
def test_f01_a_partial_outage_is_noticed_too(per_s: float) -> None:
    found = [_attempts_until_alarm(0.5, per_s, seed, 10_000) for seed in range(50)]
    assert sum(found) / len(found) < 15
    assert max(found) < 60
