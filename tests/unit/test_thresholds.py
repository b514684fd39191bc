"""Thresholds that tune themselves: steps, the exact bound, and the order of tests (F-16)."""

import math

import pytest

from routing.errors import PolicyError
from routing.policy import FailbackPolicy, ForecastPolicy, Policy, ReflexPolicy
from scoring.alarms import allowed
from scoring.thresholds import (
    LADDERS,
    Count,
    Objective,
    certified,
    changed,
    in_test_order,
    poisson_upper_bound,
    provider_days_needed,
    step_to,
    steps_from,
    value_of,
)


def test_a_step_moves_one_threshold_to_the_next_rung() -> None:
    """F-16: changes are bounded."""
    steps = steps_from(Policy(), 0.65)
    assert len({(step.name, step.strictness) for step in steps}) == len(steps)
    of = {(step.name, step.strictness): step.after for step in steps}
    assert of["forecast.threshold", 1] == 0.7
    assert of["forecast.threshold", -1] == 0.6
    assert of["reflex.failing_rate", 1] == 0.4
    assert of["failback.steps", -1] == (0.2, 0.5)
    for step in steps:
        assert changed(Policy(), {step.name: step.after}) != Policy()


def test_without_a_forecaster_its_threshold_has_no_steps() -> None:
    assert "forecast.threshold" not in {step.name for step in steps_from(Policy(), None)}
    own = Policy(forecast=ForecastPolicy(threshold=0.5))
    assert "forecast.threshold" in {step.name for step in steps_from(own, None)}


def test_the_ends_of_a_ladder_and_values_beyond_it() -> None:
    strictest = Policy(reflex=ReflexPolicy(failing_rate=0.6))
    assert [step.after for step in steps_from(strictest, None) if step.name == "reflex.failing_rate"] == [0.5]
    beyond = Policy(reflex=ReflexPolicy(failing_rate=0.9))
    assert [step.after for step in steps_from(beyond, None) if step.name == "reflex.failing_rate"] == [0.6]
    odd = Policy(failback=FailbackPolicy(steps=(0.17, 0.18)))
    assert "failback.steps" not in {step.name for step in steps_from(odd, None)}


def test_every_ladder_is_of_thresholds_that_exist_and_values_that_are_sound() -> None:
    for name, ladder in LADDERS.items():
        value_of(Policy(), name)
        assert len(set(ladder)) == len(ladder) >= 3
        for value in ladder:
            changed(Policy(), {name: value})


@pytest.mark.parametrize("events", [0, 1, 3, 20, 200])
def test_the_bound_is_exact(events: int) -> None:
    """F-16: at the bound, so few events have a chance of 5 % (Garwood 1936)."""
    mean = poisson_upper_bound(events)
    at_most = sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(events + 1))
    assert at_most == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("mean", [2.9, 3.1, 10.0, 47.5])
def test_it_agrees_with_the_count_that_alarms_are_allowed(mean: float) -> None:
    most = allowed(mean)
    assert most < 0 or poisson_upper_bound(most) <= mean
    assert poisson_upper_bound(most + 1) > mean


def test_a_count_without_exposure_certifies_nothing() -> None:
    assert not Count(0, 0.0).meets(1e9)
    assert Count(0, 3.0).meets(1.0)
    assert not Count(0, 2.9).meets(1.0)
    assert provider_days_needed(1.0) == pytest.approx(2.9957, abs=1e-3)


def test_the_first_that_fails_ends_the_sequence() -> None:
    """F-16: a lucky loose threshold behind a bad stricter one is not accepted."""
    assert certified([Count(0, 10), Count(30, 10), Count(0, 10)], 1.0) == 1
    assert certified([Count(0, 10), Count(2, 10)], 1.0) == 2
    assert certified([], 1.0) == 0


def test_stricter_steps_are_tested_first_whatever_their_figures() -> None:
    order = in_test_order(list(reversed(steps_from(Policy(), 0.65))))
    assert [step.strictness for step in order] == sorted((step.strictness for step in order), reverse=True)
    names = [step.name for step in order if step.strictness == 1]
    assert names == [name for name in LADDERS if name in names]


def test_the_objective_weighs_what_it_is_told_to() -> None:
    assert Objective().loss(10.0, 0.01, 30.0) == pytest.approx(10 + 1 + 0.3)
    assert Objective(needless_weight=0, switch_weight=0).loss(10.0, 0.5, 900.0) == 10.0


def test_a_step_somebody_asks_for_knows_its_side() -> None:
    assert step_to(Policy(), None, "reflex.failing_rate", 0.45).strictness == 1
    assert step_to(Policy(), 0.5, "forecast.threshold", 0.3).strictness == -1
    assert step_to(Policy(), None, "failback.steps", (0.05, 0.5)).strictness == 1
    with pytest.raises(PolicyError, match=r"reflex\.silence_s"):
        step_to(Policy(), None, "reflex.silence_s", 3.0)
    with pytest.raises(PolicyError, match="no forecaster"):
        step_to(Policy(), None, "forecast.threshold", 0.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reflex.failing_rate", 1.5), ("reflex.nonsense", 0.5), ("failback.steps", 0.5), ("reflex.failing_rate", None),
        ("reflex.failing_rate", (0.1, 0.2)), ("failback.kind", 1.0), ("reflex.min_hanging", 2.5),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused_by_name(name: str, value: float | tuple[float, ...] | None) -> None:
    with pytest.raises(PolicyError, match=name.rpartition(".")[2]):
        changed(Policy(), {name: value})


def test_counts_survive_json() -> None:
    assert changed(Policy(), {"reflex.min_hanging": 3.0}).reflex.min_hanging == 3
    assert changed(Policy(forecast=ForecastPolicy(threshold=0.5)), {"forecast.threshold": None}) == Policy()
