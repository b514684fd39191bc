"""A policy that cannot work is refused at once, with the field, its value and what was expected."""

from dataclasses import fields

import pytest

from routing.errors import PolicyError, RoutingError
from routing.policy import AttemptPolicy, FailbackPolicy, ForecastPolicy, Policy, ReflexPolicy

NAN = float("nan")
WRONG: list[tuple[type, str, object]] = [
    *[
        (ReflexPolicy, name, 0)
        for name in ("consecutive_failures", "min_attempts", "min_latency_samples", "min_hanging")
    ],
    *[(ReflexPolicy, "error_rate", value) for value in (0.0, 1.01, NAN)],
    *[(ReflexPolicy, name, value) for name in ("latency_ratio", "hang_ratio") for value in (1.0, NAN)],
    *[
        (ReflexPolicy, name, value)
        for name in ("hang_floor_s", "ejection_s", "forgive_s")
        for value in (0.0, -1.0, NAN)
    ],
    (ReflexPolicy, "max_ejection_s", 4.9),
    *[(FailbackPolicy, name, 0) for name in ("probe_successes", "step_successes")],
    *[(FailbackPolicy, name, 0.0) for name in ("probe_interval_s", "step_s", "min_hold_s")],
    *[(FailbackPolicy, "degraded_share", value) for value in (0.0, 1.0, NAN)],
    *[(FailbackPolicy, "steps", value) for value in ((), (0.0, 0.5), (0.5, 1.0), (0.5, 0.2), (0.3, 0.3), (NAN,))],
    *[(ForecastPolicy, "threshold", value) for value in (0.0, 1.0, NAN)],
    *[(ForecastPolicy, "exit_ratio", value) for value in (0.0, 1.1)],
    (ForecastPolicy, "max_age_s", 0.0),
    (AttemptPolicy, "max_attempts", 0),
    *[(AttemptPolicy, name, 0.0) for name in ("deadline_s", "connect_timeout_s", "ttft_timeout_s", "stall_timeout_s")],
    *[(AttemptPolicy, "reserve_s", value) for value in (-1.0, 300.0)],
]


@pytest.mark.parametrize(("group", "name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name(group: type, name: str, value: object) -> None:
    with pytest.raises(PolicyError) as refusal:
        group(**{name: value})
    assert refusal.value.field == name
    assert str(refusal.value).startswith(f"{name} = {value!r}: expected ")
    assert isinstance(refusal.value, RoutingError)


def test_the_edges_of_the_ranges_are_allowed() -> None:
    ReflexPolicy(consecutive_failures=1, error_rate=1.0, ejection_s=5.0, max_ejection_s=5.0)
    FailbackPolicy(steps=(0.5,))
    ForecastPolicy(threshold=None, exit_ratio=1.0)
    AttemptPolicy(max_attempts=1, reserve_s=0.0)


def test_f09_the_thresholds_are_listed_by_group_and_field() -> None:
    thresholds = Policy(forecast=ForecastPolicy(threshold=0.3)).thresholds()
    assert thresholds["reflex.consecutive_failures"] == 3
    assert thresholds["forecast.threshold"] == 0.3
    groups = (ReflexPolicy, FailbackPolicy, ForecastPolicy, AttemptPolicy)
    assert len(thresholds) == sum(len(fields(group)) for group in groups)
