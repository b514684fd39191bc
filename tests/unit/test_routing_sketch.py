"""The sketch keeps its promise: quantiles within five percent, over the last minutes, in fixed memory."""

import random

import numpy as np
import pytest

from routing.sketch import QuantileSketch


@pytest.mark.parametrize("spread", [0.2, 1.0, 1.8])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_within_five_percent_of_the_exact_ones(spread: float, fraction: float) -> None:
    rng, sketch = random.Random(3), QuantileSketch()
    values = [min(max(rng.lognormvariate(-0.5, spread), 0.001), 600.0) for _ in range(5000)]
    for i, value in enumerate(values):
        sketch.add(value, i * 0.05)
    exact = float(np.quantile(values, fraction, method="lower"))
    assert sketch.quantile(fraction, 250.0) == pytest.approx(exact, rel=0.0501)


def test_old_values_leave_with_their_slot() -> None:
    sketch = QuantileSketch(slots=3, slot_s=10.0)
    sketch.add(1.0, 5.0)
    sketch.add(4.0, 15.0)
    assert sketch.quantile(0.0, 29.9) == pytest.approx(1.0, rel=0.05)
    assert sketch.quantile(0.0, 30.0) == pytest.approx(4.0, rel=0.05)
    assert sketch.quantile(0.0, 40.0) is None


def test_a_slot_that_is_used_again_starts_empty() -> None:
    sketch = QuantileSketch(slots=3, slot_s=10.0)
    for _ in range(100):
        sketch.add(1.0, 5.0)
    sketch.add(8.0, 1005.0)
    assert sketch.quantile(0.5, 1005.0) == pytest.approx(8.0, rel=0.05)


def test_a_late_value_counts_in_the_newest_slot() -> None:
    sketch = QuantileSketch(slots=3, slot_s=10.0)
    sketch.add(1.0, 1005.0)
    sketch.add(1.0, 5.0)
    assert sketch.quantile(1.0, 1029.0) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("value_s", "reported_s"), [(1e-9, 0.001), (10_000.0, 600.0)])
def test_values_beyond_the_range_count_at_its_end(value_s: float, reported_s: float) -> None:
    sketch = QuantileSketch()
    sketch.add(value_s, 0.0)
    assert sketch.quantile(0.5, 0.0) == pytest.approx(reported_s, rel=0.1)


def test_nothing_counted_is_none() -> None:
    assert QuantileSketch().quantile(0.5, 1e9) is None


def test_what_was_read_is_forgotten_with_the_next_value_and_the_next_slot() -> None:
    sketch = QuantileSketch(slots=2, slot_s=10.0)
    sketch.add(1.0, 5.0)
    assert sketch.quantile(1.0, 5.0) == pytest.approx(1.0, rel=0.05)
    sketch.add(4.0, 6.0)
    assert sketch.quantile(1.0, 6.0) == pytest.approx(4.0, rel=0.05)
    assert sketch.quantile(1.0, 25.0) is None
    assert sketch.quantile(1.0, 6.0) == pytest.approx(4.0, rel=0.05), "a read changes no answer"
