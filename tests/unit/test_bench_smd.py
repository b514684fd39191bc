"""The evaluation on real machines looks back only, and asks only what can be answered."""

from pathlib import Path

import numpy as np
import pytest

from bench.smd import LEVEL, MODEL, Minutes, Rivals, fit, labels, main, minutes_of, trailing_mean


def test_nothing_a_minute_is_judged_by_lies_after_it() -> None:
    rng = np.random.default_rng(1)
    record = rng.random((6000, 38))
    other = record.copy()
    other[5000:] = rng.random((1000, 38))
    one, two = (minutes_of("m", 0, values, 0.6) for values in (record, other))
    assert np.array_equal(one.x[:5000], two.x[:5000])
    assert np.array_equal(one.z[:5000], two.z[:5000])
    assert not np.array_equal(one.x[5000:], two.x[5000:])


def test_the_label_is_the_next_quarter_of_an_hour_and_breaks_are_not_asked_about() -> None:
    is_broken = np.zeros(2000, dtype=np.bool_)
    is_broken[1000:1010] = True
    y, counts = labels(is_broken)
    assert np.flatnonzero(y).tolist() == list(range(985, 1000))
    assert not counts[:720].any()
    assert counts[720:1000].all()
    assert not counts[1000:1024].any()
    assert counts[1024:1985].all()
    assert not counts[1985:].any()


def test_a_trailing_mean_is_of_what_there_is() -> None:
    assert trailing_mean(np.array([[1.0], [3.0], [5.0]]), 2)[:, 0].tolist() == [1.0, 2.0, 4.0]


def drawn(seed: int, sign: float) -> Minutes:
    """Two days whose third feature tells the label in one way or, with sign -1, misleads."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2880, 4))
    y = (sign * x[:, 2] + rng.normal(size=2880) > 1).astype(np.int8)
    return Minutes("m", 0, x, y, np.ones(2880, dtype=np.bool_), np.exp(x[:, 0] + y), x[:, 0] + y)


def test_the_model_the_gate_judges_knows_nothing_of_the_gates_days() -> None:
    parts = [[drawn(1, 1)], [drawn(2, 1)]]
    (stopped, whole), (same, other) = (fit([*parts, [drawn(3, sign)]]) for sign in (1, -1))
    x = drawn(4, 1).x
    assert np.array_equal(stopped.log_odds(x), same.log_odds(x))
    assert not np.array_equal(whole.log_odds(x), other.log_odds(x))


def test_another_model_is_heard_at_the_thresholds_of_before() -> None:
    parts = [[drawn(seed, 1)] for seed in (1, 2, 3)]
    stopped, whole = fit(parts)
    before = Rivals(stopped, parts[1])
    after = before.with_model(whole)
    assert after.threshold == before.threshold
    assert np.array_equal(after.risk(LEVEL, parts[2]), before.risk(LEVEL, parts[2]))
    assert not np.array_equal(after.risk(MODEL, parts[2]), before.risk(MODEL, parts[2]))


def test_without_the_data_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 3
    assert "nothing was measured" in capsys.readouterr().err
