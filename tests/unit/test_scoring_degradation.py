"""What counts as degraded: beyond the usual, and beyond chance."""

import numpy as np
import pytest

from scoring.degradation import enough_attempts, enough_timed, fails, failure_excess, is_slow, slow_from


@pytest.mark.parametrize(
    ("failures", "attempts", "usual_failures", "usual_attempts", "degraded"),
    [
        (2, 2, 0, 0, False),
        (3, 3, 0, 0, True),
        (3, 30, 0, 0, True),
        (3, 31, 0, 0, False),  # less than a tenth
        (3, 30, 75, 1470, False),  # one in twenty is usual: three of thirty are chance
        (8, 30, 75, 1470, True),
        (6, 30, 735, 1470, False),  # half is usual, and counts as a tenth
        (11, 30, 735, 1470, True),
        (0, 0, 0, 0, False),
    ],
)
def test_failures_degrade_when_they_are_many_and_no_chance(
    failures: int, attempts: int, usual_failures: int, usual_attempts: int, degraded: bool
) -> None:
    assert bool(fails(failures, attempts, usual_failures, usual_attempts)) is degraded


def test_an_excess_by_chance_is_a_standard_normal_value_whatever_is_usual() -> None:
    rng = np.random.default_rng(1)
    for rate, attempts in ((0.01, 600), (0.05, 200), (0.08, 1000)):
        counts = rng.binomial(attempts, rate, 20_000)
        excess = failure_excess(counts, attempts, rate * 100_000, 100_000 - 30)
        assert abs(excess.mean()) < 0.15
        assert excess.std() == pytest.approx(1.0, abs=0.1)
        assert (excess >= 3).mean() < 0.003


def test_three_failures_by_chance_hardly_ever_degrade_who_fails_one_in_fifty() -> None:
    """The plain rule of three failures that are a tenth would call a sixtieth of these half minutes degraded."""
    counts = np.random.default_rng(2).binomial(25, 0.02, 100_000)
    plain = (counts >= 3) & (counts >= 2.5)
    ours = fails(counts, 25, 20, 1000)
    assert plain.mean() > 1 / 100
    assert ours.mean() < 1 / 5000


def test_a_median_is_slow_against_the_usual_one_and_the_slowest_usual_twentieth() -> None:
    assert is_slow(0.25, 7, 0.1, 0.2)
    assert not is_slow(0.25, 6, 0.1, 0.2)
    assert not is_slow(0.24, 7, 0.1, 0.2)
    assert not is_slow(0.3, 7, 0.1, 0.31)
    assert enough_timed([7, 7 - 1e-12, 6]).tolist() == [True, True, False]


def test_who_knows_only_the_spread_is_slow_from_the_same_ratio_on() -> None:
    spreads = np.array([0.2, 1.0])
    usual = np.exp(np.random.default_rng(3).standard_normal((200_000, 2)) * spreads)
    ratio = np.exp(slow_from(spreads))
    for column in range(2):
        median, slowest = np.quantile(usual[:, column], (0.5, 0.95))
        assert is_slow(ratio[column] * 1.02 * median, 7, median, slowest)
        assert not is_slow(ratio[column] * 0.98 * median, 7, median, slowest)


def test_three_attempts_in_each_half_minute_are_enough_to_call_an_endpoint_healthy() -> None:
    assert enough_attempts(60.0) == 6
