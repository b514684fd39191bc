"""A policy that cannot work is refused at once, with the field, its value and what was expected."""

from dataclasses import fields
from itertools import pairwise

import pytest

from routing.errors import PolicyError, RoutingError
from routing.policy import (
    AttemptPolicy,
    BudgetPolicy,
    FailbackKind,
    FailbackPolicy,
    ForecastPolicy,
    HedgePolicy,
    Policy,
    ReflexPolicy,
)

NAN, INF = float("nan"), float("inf")
WRONG: list[tuple[type, str, object]] = [
    *[
        (group, name, value)
        for group, name in [
            (ReflexPolicy, "min_latency_samples"),
            (ReflexPolicy, "min_hanging"),
            (FailbackPolicy, "probe_successes"),
            (FailbackPolicy, "validation_probes"),
            (AttemptPolicy, "max_attempts"),
        ]
        for value in (0, 2.5, NAN)
    ],
    *[
        (ReflexPolicy, name, value)
        for name in ("false_alarm_every_s", "silence_s", "hang_floor_s", "ejection_s", "forgive_s")
        for value in (0.0, -1.0, NAN, INF)
    ],
    *[(ReflexPolicy, "normal_rate", value) for value in (0.0, 1.0, NAN)],
    *[(ReflexPolicy, "failing_rate", value) for value in (0.0399, 1.0, NAN)],
    *[
        (ReflexPolicy, name, value)
        for name in ("latency_ratio", "hang_ratio", "pace_ratio")
        for value in (1.0, NAN, INF)
    ],
    *[(ReflexPolicy, "lost_ratio", value) for value in (0.99, NAN, INF)],
    *[(ReflexPolicy, "overdue_share", value) for value in (0.0, 1.0, NAN)],
    *[(ReflexPolicy, "latency_z", value) for value in (-0.1, NAN, INF)],
    *[(ReflexPolicy, "max_ejection_s", value) for value in (0.0, NAN, INF)],
    *[
        (FailbackPolicy, name, value)
        for name in ("probe_interval_s", "max_probe_interval_s", "step_s", "min_hold_s", "max_hold_s")
        for value in (0.0, NAN, INF)
    ],
    *[
        (FailbackPolicy, name, value)
        for name in ("degraded_share", "max_failure_rate", "confidence", "ramp_step")
        for value in (0.0, 1.0, NAN)
    ],
    *[(FailbackPolicy, "steps", value) for value in ((), (0.0, 0.5), (0.5, 1.0), (0.5, 0.2), (0.3, 0.3), (NAN,))],
    *[(ForecastPolicy, "threshold", value) for value in (0.0, 1.0, NAN)],
    *[(ForecastPolicy, "exit_ratio", value) for value in (0.0, 1.1)],
    (ForecastPolicy, "max_age_s", 0.0),
    *[(ForecastPolicy, "settle_s", value) for value in (-0.1, NAN, INF)],
    *[
        (AttemptPolicy, name, 0.0)
        for name in ("deadline_s", "connect_timeout_s", "ttft_timeout_s", "reply_timeout_s", "stall_timeout_s")
    ],
    *[(AttemptPolicy, "reserve_s", value) for value in (-1.0, 300.0, NAN)],
    *[(BudgetPolicy, name, value) for name in ("retry_share", "retry_floor_per_s") for value in (-0.1, NAN, INF)],
    *[(BudgetPolicy, "window_s", value) for value in (0.0, NAN, INF)],
    *[(BudgetPolicy, "overloaded_share", value) for value in (0.0, 1.0, NAN)],
    *[(BudgetPolicy, "max_wait_s", value) for value in (-0.1, NAN, INF)],
    *[(BudgetPolicy, "max_waiting", value) for value in (-1, 2.5)],
    *[
        (HedgePolicy, name, value)
        for name in ("after_quantile", "doubt_quantile", "max_share", "max_spend_share")
        for value in (0.0, 1.0, NAN)
    ],
    *[(HedgePolicy, "after_ratio", value) for value in (0.9, NAN, INF)],
    *[(HedgePolicy, name, value) for name in ("floor_s", "window_s") for value in (0.0, NAN, INF)],
]


@pytest.mark.parametrize(("group", "name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name(group: type, name: str, value: object) -> None:
    with pytest.raises(PolicyError) as refusal:
        group(**{name: value})
    assert refusal.value.field == name
    assert str(refusal.value).startswith(f"{name} = {value!r}: expected ")
    assert isinstance(refusal.value, RoutingError)


def test_the_edges_of_the_ranges_are_allowed() -> None:
    ReflexPolicy(normal_rate=0.1, failing_rate=0.2, latency_z=0.0, ejection_s=5.0, max_ejection_s=5.0)
    FailbackPolicy(steps=(0.5,), probe_interval_s=60.0, max_probe_interval_s=15.0, min_hold_s=9.0, max_hold_s=5.0)
    ForecastPolicy(threshold=None, exit_ratio=1.0, settle_s=0.0)
    AttemptPolicy(max_attempts=1, reserve_s=0.0)


@pytest.mark.parametrize(
    ("kind", "shares", "probes"),
    [
        (FailbackKind.CANARY, (0.2, 0.7), 2),
        (FailbackKind.GRADUAL, (0.25, 0.5, 0.75), 2),
        (FailbackKind.BLUE_GREEN, (), 6),
    ],
)
def test_f15_each_kind_of_return_has_its_shares_and_probes(
    kind: FailbackKind, shares: tuple[float, ...], probes: int
) -> None:
    policy = FailbackPolicy(kind, steps=(0.2, 0.7), ramp_step=0.25, probe_successes=2, validation_probes=6)
    assert (policy.shares(), policy.probes_needed()) == (shares, probes)


@pytest.mark.parametrize("ramp_step", [0.05, 0.07, 0.1, 0.3, 1 / 3, 0.5, 0.51, 0.99])
def test_f15_a_ramp_rises_and_stops_short_of_all_traffic(ramp_step: float) -> None:
    shares = FailbackPolicy(FailbackKind.GRADUAL, ramp_step=ramp_step).shares()
    assert all(high - low == pytest.approx(ramp_step) for low, high in pairwise(shares))
    assert 0 < shares[0] <= shares[-1] < 1 <= shares[-1] + ramp_step + 1e-9


def test_f09_the_thresholds_are_listed_by_group_and_field() -> None:
    thresholds = Policy(forecast=ForecastPolicy(threshold=0.3)).thresholds()
    assert thresholds["reflex.failing_rate"] == 0.3
    assert thresholds["forecast.threshold"] == 0.3
    assert set(thresholds) == {
        f"{group.name}.{field.name}" for group in fields(Policy) for field in fields(getattr(Policy(), group.name))
    }
