"""Shares sum to one and follow admissions; one draw makes one choice."""

import random
from collections import Counter
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.health import State
from routing.model import Objective
from routing.pickers import PICKER_OF, OrderedPicker, PowerOfTwoPicker, WeightedPicker, pick
from routing.scorers import SCORERS
from routing.snapshot import Candidate, Facts
from tests.routing_world import endpoint


def _candidates(*admissions: float, values: float = 1.0) -> list[Candidate]:
    return [
        Candidate(
            Facts(endpoint(f"e{i}", i), State.ACTIVE, admission, 0, 0, None, 1, 0, None),
            1.0,
            {scorer.name: values for scorer in SCORERS},
        )
        for i, admission in enumerate(admissions)
    ]


@pytest.mark.parametrize(
    ("admissions", "shares"),
    [
        ([1.0], [1.0]),
        ([0.1], [1.0]),
        ([0.0], [1.0]),
        ([1.0, 1.0], [1.0, 0.0]),
        ([0.1, 1.0], [0.1, 0.9]),
        ([0.1, 0.3, 1.0], [0.1, 0.27, 0.63]),
        ([0.1, 0.1], [0.91, 0.09]),
        ([0.1, 0.5, 0.2], [0.1, 0.81, 0.09]),
        ([0.0, 0.0], [1.0, 0.0]),
    ],
)
def test_ordered_shares_flow_down_and_the_rest_goes_to_the_most_admissible(
    admissions: list[float], shares: list[float]
) -> None:
    assert OrderedPicker().shares(_candidates(*admissions), Objective.ORDERED, 0) == pytest.approx(shares)


def test_weighted_shares_follow_the_squared_score_and_the_admission() -> None:
    good, poor = _candidates(1.0)[0], _candidates(1.0, values=0.5)[0]
    assert WeightedPicker().shares([good, poor], Objective.BALANCED, 0) == pytest.approx([0.8, 0.2])
    assert WeightedPicker().shares(_candidates(1.0, 0.25), Objective.BALANCED, 0) == pytest.approx([0.8, 0.2])
    assert WeightedPicker().shares(_candidates(0.0, 0.0), Objective.BALANCED, 0) == [1.0, 0.0]


@pytest.mark.parametrize("objective", Objective)
def test_shares_are_fractions_that_sum_to_one(objective: Objective) -> None:
    rng = random.Random(2)
    for _ in range(500):
        admissions = [rng.choice([0.0, 0.05, 0.1, rng.random(), 1.0]) for _ in range(rng.randint(1, 12))]
        shares = PICKER_OF[objective].shares(
            _candidates(*admissions, values=rng.random()), objective, rng.randint(0, len(admissions))
        )
        assert sum(shares) == pytest.approx(1.0)
        assert all(0.0 <= share <= 1.0 for share in shares)


@pytest.mark.parametrize(
    ("admissions", "favoured", "shares"),
    [
        ([1.0, 1.0, 1.0], 1, [1.0, 0.0, 0.0]),
        ([0.4, 1.0], 1, [0.4 + 0.6 * 0.4 / 1.4, 0.6 / 1.4]),
        ([0.5, 0.5, 1.0], 2, [0.5 + 0.25 * 0.25, 0.25 + 0.25 * 0.25, 0.25 * 0.5]),
        ([0.0, 1.0], 1, [0.0, 1.0]),
    ],
)
def test_c06_balancing_starts_from_what_the_caller_favours(
    admissions: list[float], favoured: int, shares: list[float]
) -> None:
    assert WeightedPicker().shares(_candidates(*admissions), Objective.BALANCED, favoured) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("draw", "index"), [(0.0, 1), (0.1999, 1), (0.2, 2), (0.6999, 2), (0.7, 4), (0.9999999999999999, 4)]
)
def test_a_draw_falls_into_its_share_and_never_into_an_empty_one(draw: float, index: int) -> None:
    assert pick(list(accumulate([0.0, 0.2, 0.5, 0.0, 0.3, 0.0])), draw) == index


@pytest.mark.parametrize("shares", [[0.3, 0.6999999999999], [0.3, 0.6999999999999, 0.0, 0.0]])
def test_a_draw_beyond_shares_that_sum_to_a_little_less_than_one_takes_the_last_share(shares: list[float]) -> None:
    assert pick(list(accumulate(shares)), 0.9999999999999999) == 1


def test_draws_reproduce_the_shares() -> None:
    rng, shares = random.Random(4), [0.1, 0.27, 0.63]
    cumulative = list(accumulate(shares))
    drawn = [pick(cumulative, rng.random()) for _ in range(20_000)]
    assert [drawn.count(i) / len(drawn) for i in range(3)] == pytest.approx(shares, abs=0.01)


def _loaded(*facts: tuple[int, float]) -> list[Candidate]:
    return [
        replace(candidate, facts=replace(candidate.facts, in_flight=load))
        for candidate, (load, _) in zip(_candidates(*(admission for _, admission in facts)), facts, strict=True)
    ]


@pytest.mark.parametrize(
    ("facts", "shares"),
    [
        ([(3, 1.0)], [1.0]),
        ([(1, 1.0), (5, 1.0)], [1.0, 0.0]),
        ([(2, 1.0), (2, 1.0)], [0.5, 0.5]),
        ([(0, 1.0), (1, 1.0), (2, 1.0)], [2 / 3, 1 / 3, 0.0]),
        ([(1, 0.1), (5, 1.0)], [0.1, 0.9]),
        ([(0, 0.0), (9, 0.0)], [1.0, 0.0]),
    ],
)
def test_the_less_loaded_of_two_serves_as_far_as_it_is_admitted(
    facts: list[tuple[int, float]], shares: list[float]
) -> None:
    assert PowerOfTwoPicker().shares(_loaded(*facts), Objective.LEAST_LOADED, 0) == pytest.approx(shares)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 1)), min_size=1, max_size=6), st.data())
def test_power_of_two_shares_are_fractions_that_sum_to_one(facts: list[tuple[int, float]], data: st.DataObject) -> None:
    favoured = data.draw(st.integers(0, len(facts)))
    shares = PowerOfTwoPicker().shares(_loaded(*facts), Objective.LEAST_LOADED, favoured)
    assert all(-1e-12 <= share <= 1 + 1e-12 for share in shares)
    assert sum(shares) == pytest.approx(1.0)


def test_the_shares_are_what_drawing_two_at_random_comes_to() -> None:
    loads, rng, wins = [4, 1, 1, 7], random.Random(3), Counter[int]()
    for _ in range(20_000):
        first, second = rng.sample(range(4), 2)
        wins[min((first, second), key=lambda i: (loads[i], rng.random()))] += 1
    shares = PowerOfTwoPicker().shares(_loaded(*((load, 1.0) for load in loads)), Objective.LEAST_LOADED, 0)
    assert [wins[i] / 20_000 for i in range(4)] == pytest.approx(shares, abs=0.02)
