"""Scores are finite and within [0, 1]; what is not is refused by the scorer's name."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from routing.health import State
from routing.model import Objective
from routing.scorers import SCORERS, WEIGHTS, contributions, health_score, weighted
from routing.snapshot import Facts
from tests.routing_world import endpoint

PLAIN = Facts(endpoint("a", input_usd_per_mtok=2.0, output_usd_per_mtok=6.0), State.ACTIVE, 1, 0, 0, 0.4, 1, 3, None)


class _Odd:
    name = "odd"

    def __init__(self, value: float) -> None:
        self._value = value

    def score(self, facts: Facts, peers: Sequence[Facts]) -> float:  # noqa: ARG002  # the protocol's signature
        return self._value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001])
def test_a_value_that_is_no_fraction_is_refused_by_name(value: float) -> None:
    with pytest.raises(ValueError, match=r"scorer 'odd' gave .* for 'a': expected a finite value in \[0, 1\]"):
        contributions(PLAIN, [PLAIN], [_Odd(value)])


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("reliability", {"error_rate": 0.25}, 0.75),
        ("reliability", {"state": State.EJECTED}, 0.0),
        ("reliability", {"state": State.PROBING}, 0.0),
        ("forecast", {"risk": 0.3}, 0.7),
        ("forecast", {"risk": None}, 1.0),
        ("steadiness", {"latency_ratio": 4.0}, 0.25),
        ("steadiness", {"latency_ratio": 0.5}, 1.0),
        ("latency", {"latency_s": 0.8}, 0.5),
        ("latency", {"latency_s": None}, 1.0),
        ("price", {"endpoint": endpoint("a", input_usd_per_mtok=4.0, output_usd_per_mtok=12.0)}, 0.5),
        ("price", {"endpoint": endpoint("a")}, 1.0),
        ("load", {"in_flight": 7}, 0.5),
    ],
)
def test_each_scorer_values_what_it_names(name: str, changes: dict[str, object], expected: float) -> None:
    own = replace(PLAIN, **changes)  # type: ignore[arg-type]  # one row of the table per field
    assert contributions(own, [own, PLAIN])[name] == pytest.approx(expected)


def test_a_free_peer_does_not_divide_by_zero() -> None:
    free = replace(PLAIN, endpoint=endpoint("free"))
    assert contributions(PLAIN, [PLAIN, free])["price"] == 0.0


def test_every_weight_names_a_scorer_and_every_objective_has_weights() -> None:
    names = {scorer.name for scorer in SCORERS}
    assert set(WEIGHTS) == set(Objective)
    assert all(set(weights) <= names for weights in WEIGHTS.values())


@pytest.mark.parametrize("objective", Objective)
def test_the_weighted_mean_stays_within_its_parts(objective: Objective) -> None:
    values = {scorer.name: index / 5 for index, scorer in enumerate(SCORERS)}
    assert 0.0 <= weighted(values, objective) <= 1.0
    assert weighted(dict.fromkeys(values, 1.0), objective) == pytest.approx(1.0)


def test_the_health_score_falls_with_each_of_its_three_causes() -> None:
    full = {"reliability": 1.0, "steadiness": 1.0, "forecast": 1.0, "price": 0.0}
    assert health_score(full) == 1.0
    for name in ("reliability", "steadiness", "forecast"):
        assert health_score(full | {name: 0.4}) == pytest.approx(0.4)
