"""Labels worked out by hand: what counts as degraded, from when, and when nothing can be said."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analytics.errors import FeatureShapeError, HistoryError
from analytics.pieces import pieces
from analytics.records import HealthRecord, Record
from analytics.training import TrainingRows, probe_contrasts, training_rows, watched_rows
from tests.history_records import attempt, health, history

T0 = 1_750_000_000.0


def labels(
    root: Path, attempts: Iterable[Record], at: Sequence[float], until: float = 10_000.0, horizon_s: float = 60.0
) -> TrainingRows:
    records = [*attempts, *(health((t,), time=T0 + t) for t in at)]
    return training_rows(history(root, records), horizon_s, T0, T0 + until)


def steady(
    start: int, end: int, *, bad: Iterable[int] = (), outcome: str = "timeout", ttft_ms: float = 100.0
) -> list[Record]:
    failing = set(bad)
    return [attempt(time=T0 + s, outcome=outcome if s in failing else "ok", ttft_ms=ttft_ms) for s in range(start, end)]


def test_the_label_covers_exactly_the_horizon_after_the_sample(tmp_path: Path) -> None:
    """Failures at 500 to 503: 10 % of 31 attempts from 503 on, while all four are in the last 30 s, so until 530."""
    rows = labels(tmp_path, steady(0, 1_000, bad=range(500, 504)), [442.5, 443, 500, 529.5, 530, 531])
    assert rows.y.tolist() == [0, 1, 1, 1, 0, 0]
    assert rows.mask.all()
    assert rows.time.tolist() == [T0 + t for t in (442.5, 443, 500, 529.5, 530, 531)]
    assert rows.endpoint.tolist() == ["a"] * 6


def test_the_horizon_of_two_minutes_sees_what_that_of_one_does_not(tmp_path: Path) -> None:
    """Degraded from 503 on: the sample at 443 sees it in a minute, the one at 383 only in two."""
    attempts = steady(0, 1_000, bad=range(500, 504))
    assert labels(tmp_path / "one", attempts, [382.5, 383, 443]).y.tolist() == [0, 0, 1]
    assert labels(tmp_path / "two", attempts, [382.5, 383, 443], horizon_s=120.0).y.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("horizon_s", "enough"), [(60.0, 6), (120.0, 12)])
def test_a_diverted_endpoint_is_not_called_healthy_for_want_of_witnesses(
    tmp_path: Path, horizon_s: float, enough: int
) -> None:
    """Traffic is moved away at 500, only probes go on: too few of them leave the label open, enough close it."""
    for name, probes, known in (("few", enough - 1, False), ("enough", enough, True)):
        gap_s = horizon_s / (probes + 0.5)
        after = [attempt(time=T0 + 500 + gap_s * (i + 1), kind="probe") for i in range(probes)]
        end = [attempt(time=T0 + 1_000)]
        rows = labels(tmp_path / name, [*steady(0, 500), *after, *end], [500], horizon_s=horizon_s)
        assert (rows.y.tolist(), rows.mask.tolist()) == ([0], [known])


def test_trouble_that_three_probes_show_counts_in_a_diverted_period(tmp_path: Path) -> None:
    """Three failed probes within 30 s are degradation, although six attempts would be needed to rule it out."""
    probes = [attempt(time=T0 + 510 + 10 * i, outcome="server_error", kind="probe") for i in range(3)]
    rows = labels(tmp_path, [*steady(0, 500), *probes, attempt(time=T0 + 1_000)], [501])
    assert (rows.y.tolist(), rows.mask.tolist()) == ([1], [True])


def test_two_failures_are_not_degradation(tmp_path: Path) -> None:
    sparse = [attempt(time=T0 + s, outcome="timeout" if s in (500, 505) else "ok") for s in range(0, 1_000, 5)]
    assert labels(tmp_path, sparse, [480]).y.tolist() == [0]


def test_three_failures_in_many_are_not_degradation(tmp_path: Path) -> None:
    """Three of the last 31 are less than 10 %."""
    assert labels(tmp_path, steady(0, 1_000, bad=(500, 501, 502)), [480]).y.tolist() == [0]


@pytest.mark.parametrize("outcome", ["client_error", "cancelled", "auth_error"])
def test_what_is_not_the_endpoints_fault_is_not_degradation(tmp_path: Path, outcome: str) -> None:
    bad = range(500, 520)
    assert labels(tmp_path, steady(0, 1_000, bad=bad, outcome=outcome), [480]).y.tolist() == [0]


def test_a_timeout_counts_when_it_becomes_known(tmp_path: Path) -> None:
    """Five attempts started at 500 and timed out at 560: the sample at 495 has no degradation before 555."""
    late = [attempt(time=T0 + 560, outcome="timeout")] * 5
    assert labels(tmp_path, [*steady(0, 560), *late, *steady(561, 1_000)], [495, 501]).y.tolist() == [0, 1]


def test_slowness_is_relative_to_the_endpoints_own_baseline(tmp_path: Path) -> None:
    """TTFT doubles and half as much again at 3,000 s: 2.5 times the baseline is degraded, 2.4 times is not."""
    for name, factor, expected in (("slow", 2.5, 1), ("slower", 2.4, 0)):
        ramp = [*steady(0, 3_000), *steady(3_000, 3_200, ttft_ms=100.0 * factor)]
        assert labels(tmp_path / name, ramp, [2_990]).y.tolist() == [expected]


def test_without_a_baseline_nothing_is_slow(tmp_path: Path) -> None:
    young = [*steady(2_900, 3_000), *steady(3_000, 3_200, ttft_ms=1_000.0)]
    assert labels(tmp_path, young, [2_990]).y.tolist() == [0]


def test_labels_without_evidence_are_masked(tmp_path: Path) -> None:
    """Two attempts in the minute after are too few; a horizon beyond the end of the period is not over yet."""
    sparse = [*steady(0, 100), attempt(time=T0 + 170), attempt(time=T0 + 180), *steady(300, 400)]
    assert labels(tmp_path, sparse, [20, 39, 130, 350], until=400).mask.tolist() == [True, True, False, False]
    assert labels(tmp_path / "quiet", [], [20]).mask.tolist() == [False]


def test_endpoints_do_not_lend_each_other_evidence(tmp_path: Path) -> None:
    records: list[Record] = [*steady(0, 200, bad=range(50, 60)), health((1.0,), time=T0 + 20, endpoint="b")]
    rows = labels(tmp_path, records, [20])
    assert [(e, y, m) for e, y, m in zip(rows.endpoint, rows.y, rows.mask, strict=True)] == [
        ("a", 1, True),
        ("b", 0, False),
    ]


def test_features_arrive_as_logged_and_of_one_feature_set(tmp_path: Path) -> None:
    odd = (1 / 3, math.nan, -0.0)
    old, new = health((9.0,), time=T0, feature_set="v1"), health(odd, time=T0 + 1, feature_set="v2")
    connection = history(tmp_path, [old, new])
    rows = training_rows(connection, 60.0, T0, T0 + 10)
    assert (rows.feature_set, rows.x.shape) == ("v2", (1, 3))
    assert (str(rows.x.dtype), str(rows.y.dtype)) == ("float64", "int8")
    np.testing.assert_array_equal(rows.x, np.array([odd]))
    assert training_rows(connection, 60.0, T0, T0 + 10, "v1").x.tolist() == [[9.0]]


def test_no_samples_are_no_rows(tmp_path: Path) -> None:
    rows = training_rows(history(tmp_path, []), 60.0, T0, T0 + 10)
    assert (rows.feature_set, rows.x.shape, rows.y.shape, rows.endpoint.shape) == ("", (0, 0), (0,), (0,))


def test_samples_of_different_length_are_named(tmp_path: Path) -> None:
    connection = history(tmp_path, [health((1.0,), time=T0), health((1.0, 2.0), time=T0)])
    with pytest.raises(FeatureShapeError, match=r"'v1'.*1, 2"):
        training_rows(connection, 60.0, T0, T0 + 10)
    with pytest.raises(HistoryError, match="horizon_s"):
        training_rows(connection, 0.0, T0, T0 + 10)


def _day(hours: int) -> list[Record]:
    """Two endpoints over some hours, with failures before, at and after full hours, and probes beside live attempts."""
    begin = 3600.0 * (T0 // 3600 + 1)
    records: list[Record] = []
    for step in range(hours * 360):
        now = begin + 10.0 * step
        bad = step % 360 in (*range(5), *range(354, 360), *range(100, 110))
        outcome = "server_error" if bad else "ok"
        for name in ("a", "b"):
            ttft_ms = 100.0 + step % 7
            records += [
                health((float(step), ttft_ms), time=now + 0.5, endpoint=name, risk=0.25),
                attempt(time=now, endpoint=name, outcome=outcome if name == "a" else "ok", ttft_ms=ttft_ms),
                attempt(time=now + 3, endpoint=name, ttft_ms=ttft_ms),
            ]
            if step % 360 in (0, 200, 359):
                records.append(attempt(time=now + 2, endpoint=name, kind="probe", outcome=outcome))
    return [replace(each, shadow="s", shadow_risk=0.5) if isinstance(each, HealthRecord) else each for each in records]


def test_history_read_in_pieces_is_what_it_is_read_whole(tmp_path: Path) -> None:
    """Labels, features, shadows and probes do not know where a piece ends."""
    connection = history(tmp_path, _day(4))
    since, until = T0, T0 + 5.3 * 3600
    assert len(list(pieces(connection, since, until, 1))) == 4
    assert list(pieces(connection, since, until, 10**9)) == [(since, until)]
    whole, cut = (training_rows(connection, 60.0, since, until, most_rows=most) for most in (10**9, 1))
    for name in ("x", "y", "mask", "time", "endpoint", "provider", "replica"):
        assert np.array_equal(getattr(cut, name), getattr(whole, name)), name
    assert 0 < whole.y.sum() < len(whole.y)
    seen = [watched_rows(connection, 60.0, since, until, "s", most_rows=most) for most in (10**9, 1)]
    for name in ("risk", "shadow_risk", "y", "mask", "time", "endpoint", "provider"):
        assert np.array_equal(*(getattr(rows, name) for rows in seen)), name
    contrasts = [probe_contrasts(connection, since, until, most_rows=most) for most in (10**9, 1)]
    assert contrasts[0] == contrasts[1]
    assert sum(contrast.probes for contrast in contrasts[0]) == 24
