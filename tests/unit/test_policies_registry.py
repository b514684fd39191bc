"""Policies by name: what is known, what is refused and how that is said, and that every grid fits its policy."""

import itertools
import re

import pytest

from routing.errors import PolicyError
from sim.policies import GRIDS, NAMES, make
from sim.policies.base import ParameterError
from tests.policy_driver import endpoints, policy_of, request


def test_every_name_of_the_scorecard_but_the_arena_s_oracle_is_there() -> None:
    assert NAMES == (
        "static", "consecutive", "litellm", "envoy", "bifrost", "llmgateway", "helicone", "smg", "peak-ewma", "prequal",
        "tuned-breaker", "routecast-reflex", "routecast-hedged", "routecast-forecast", "prequal+forecast",
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_policy_bears_its_name(name: str) -> None:
    assert policy_of(name).name == name


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(ParameterError, match=r"unknown policy 'magic'; known policies: static, consecutive, litellm"):
        make("magic", endpoints(2), 0)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_told_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        ParameterError, match=f"policy '{re.escape(name)}' has no parameter 'nonsense'; it has: .*stall_timeout_s"
    ):
        policy_of(name, nonsense=1.0)


@pytest.mark.parametrize(
    ("name", "parameter", "value", "expected"),
    [
        ("litellm", "cooldown_s", 0.0, "more than 0 seconds"),
        ("litellm", "cooldown_s", float("nan"), "a finite number of 0 or more"),
        ("litellm", "failed_share", 1.1, r"a fraction in \[0, 1\]"),
        ("smg", "max_failures", -1, "a finite number of 0 or more"),
        ("smg", "max_failures", 2.5, "a whole number"),
        ("routecast-reflex", "reflex.min_hanging", 2.5, "a whole number"),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, parameter: str, value: float, expected: str) -> None:
    with pytest.raises(ParameterError, match=expected):
        make(name, endpoints(2), 0, {parameter: value})


def test_the_core_s_own_checks_hold_for_routecast_s_parameters() -> None:
    with pytest.raises(PolicyError, match=r"failing_rate = 1\.5"):
        make("routecast-reflex", endpoints(2), 0, {"reflex.failing_rate": 1.5})


def test_endpoints_must_come_in_their_order() -> None:
    with pytest.raises(ParameterError, match="`index` 0, 1, 2"):
        make("static", endpoints(3)[::-1], 0)
    with pytest.raises(ParameterError, match="at least one"):
        make("static", [], 0)


@pytest.mark.parametrize("name", GRIDS)
def test_every_point_of_a_grid_makes_a_policy(name: str) -> None:
    points = list(itertools.product(*GRIDS[name].values()))
    assert 8 <= len(points) <= 20, "tuning plays every point on calibration days"
    for point in points:
        make(name, endpoints(3), 0, dict(zip(GRIDS[name], point, strict=True)))


def test_a_parameter_overrides_a_published_default() -> None:
    assert policy_of("envoy").tick_s == 10.0
    assert policy_of("envoy", interval_s=3).tick_s == 3.0
    assert policy_of("litellm").patience_s(request(), (), 0.0) == 600.0
    assert policy_of("litellm", attempt_timeout_s=10).patience_s(request(), (), 0.0) == 10.0
