"""The Python label rule and its SQL twin judge the same attempts alike."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from analytics.records import AttemptRecord, HealthRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from analytics.training import training_rows
from routing.outcomes import Outcome
from scoring.features import FEATURE_SET, NAMES
from scoring.labels import Attempt, degraded_moments, labels
from sim.traffic import traces
from sim.world import START_S, Setting, make_world


def attempt_row(endpoint: str, attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        replica="test", time=attempt.time, started=attempt.time, request_id="", decision_id="", number=1, kind="live",
        endpoint=endpoint, provider="p", region="r", zone="z", model="m", agent="", tenant="",
        outcome=attempt.outcome.value, http_status=None, error="",
        ttft_ms=None if attempt.ttft_s is None else attempt.ttft_s * 1e3, latency_ms=1.0, input_tokens=None,
        output_tokens=None, cost_usd=None,
    )  # fmt: skip


def written(root: Path, attempts: Mapping[str, Sequence[Attempt]]) -> SegmentWriter:
    writer = SegmentWriter(root, "test", 1)
    for endpoint, own in attempts.items():
        if own:
            writer.write("attempts", [attempt_row(endpoint, attempt) for attempt in own])
    return writer


def health_row(endpoint: str, time: float, features: tuple[float, ...]) -> HealthRecord:
    return HealthRecord(
        replica="test", time=time, endpoint=endpoint, provider="p", region="r", model="m", state="active",
        admission=1.0, score=1.0, risk=None, forecaster="", feature_set=FEATURE_SET, features=features,
    )  # fmt: skip


def test_python_and_sql_label_a_simulated_world_alike(tmp_path: Path) -> None:
    world = make_world(7, Setting.STEADY)
    found = traces(world)
    ticks = [START_S + t for t in range(5, world.duration_s - 60, 5)]
    writer = written(tmp_path, {f"e{i}": trace.attempts for i, trace in enumerate(found)})
    expected = {}
    for i, trace in enumerate(found):
        endpoint = f"e{i}"
        # The row's own time stands in for features: they must come back untouched.
        writer.write("health", [health_row(endpoint, t, (t / 3,) * len(NAMES)) for t in ticks])
        expected[endpoint] = labels(trace.attempts, degraded_moments(trace.attempts), ticks)
    writer.close()
    with connect(tmp_path) as connection:
        rows = training_rows(connection, 60.0, START_S, START_S + world.duration_s + 600, FEATURE_SET)

    compared = positives = 0
    for endpoint, label in expected.items():
        own = rows.endpoint == endpoint
        known = rows.mask[own] & label.known
        assert rows.y[own][known].tolist() == label.y[known].tolist()
        assert (rows.x[own][:, 0] == np.array(ticks) / 3).all()
        compared += int(known.sum())
        positives += int(label.y[known].sum())
    assert compared > 1000
    assert positives > 20


@pytest.mark.parametrize("per_s", [0.06, 0.12, 0.3, 3.0])
def test_python_and_sql_agree_on_every_moment_whatever_the_traffic(tmp_path: Path, per_s: float) -> None:
    """All was well until shortly ago, so that a baseline in whole minutes is that of the second; some end at once."""
    rng = np.random.default_rng(int(100 * per_s))
    attempts: dict[str, list[Attempt]] = {}
    for endpoint in ("a", "b", "c"):
        times = START_S + np.cumsum(rng.exponential(1 / per_s, int(3600 * per_s))).round(3)
        times[1::9] = times[:-1:9]
        in_trouble = times > times[-1] - 290
        slow, fails = (in_trouble & (rng.random(len(times)) < share) for share in (0.7, 0.2))
        attempts[endpoint] = [
            Attempt(time, Outcome.SERVER_ERROR, None) if fail else Attempt(time, Outcome.OK, 0.4 if is_slow else 0.1)
            for time, is_slow, fail in zip(np.sort(times).tolist(), slow, fails, strict=True)
        ]
    written(tmp_path, attempts).close()
    with connect(tmp_path) as connection:
        found = connection.execute(
            "SELECT endpoint, epoch_us(time) FROM degraded_moments(?, ?) ORDER BY ALL",
            [datetime.fromtimestamp(at, UTC).replace(tzinfo=None) for at in (START_S, START_S + 7200)],
        ).fetchall()
    expected = [(name, round(moment * 1e6)) for name, own in attempts.items() for moment in degraded_moments(own)]
    assert found == expected
    assert found
