"""Vectors logged online are what back-filling from recorded attempts gives, bit for bit."""

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pytest

from analytics.records import AttemptRecord, HealthRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from analytics.training import training_rows
from routing.model import Endpoint
from routing.outcomes import Outcome
from scoring.backfill import backfilled
from scoring.features import FEATURE_SET, NAMES
from scoring.job import Settings, Verdict, retrain
from scoring.protocol import Batch, EndpointInfo, Hello, Observation
from scoring.scorer import Scorer
from service.history import attempt_record
from sim.traffic import Observation as Seen
from sim.traffic import traces
from sim.world import START_S, Setting, make_world

SEED = 31
OFFSET_S = 1_700_000_000.123_456_7 - START_S  # unix times of today, and no whole microseconds


@dataclasses.dataclass(frozen=True)
class Lived:
    """What a scoring process was told, what it logged, and the attempts that the serving process recorded."""

    attempts: list[AttemptRecord]
    logged: list[HealthRecord]


@pytest.fixture(scope="module")
def lived() -> Lived:
    """A world with trouble in it, told to a scorer in batches of 100 ms as a serving process tells it."""
    world = make_world(SEED, Setting.COLD)
    endpoints = [
        Endpoint(r.id, r.place.provider, r.place.region, "z", "m", "m", i, frozenset())
        for i, r in enumerate(world.regimes)
    ]
    events: list[tuple[float, int, Seen]] = sorted(
        ((seen.time + OFFSET_S, i, seen) for i, trace in enumerate(traces(world)) for seen in trace.observations),
        key=lambda event: (event[0], event[2].kind, event[1]),
    )
    logged: list[HealthRecord] = []
    infos = [EndpointInfo(e.id, e.provider, e.region, e.zone, e.model) for e in endpoints]
    scorer = Scorer(Hello(infos, "unused", "test"), logged.append, Random(1))
    attempts: list[AttemptRecord] = []
    started: dict[tuple[int, str], float] = {}
    first_byte: dict[tuple[int, str], float] = {}
    batch: list[Observation] = []
    now = events[0][0]
    for time, i, seen in events:
        while time >= now + 0.1:
            now += 0.1
            scorer.take(Batch(now, batch))
            batch = []
        batch.append(told(time, i, seen))
        if seen.kind == 0:
            started[i, seen.attempt_id] = time
        elif seen.kind == 2:
            key = i, seen.attempt_id
            attempts.append(recorded(endpoints[i], seen, started[key], first_byte.get(key), time))
        else:
            first_byte[i, seen.attempt_id] = time
    return Lived(attempts, logged)


def told(time: float, endpoint: int, seen: Seen) -> Observation:
    if seen.kind < 2:
        return Observation("started" if seen.kind == 0 else "first_byte", endpoint, seen.attempt_id, time)
    whole = seen.reply_s is not None
    return Observation(
        "finished", endpoint, seen.attempt_id, time, seen.outcome, seen.ttft_s, seen.reply_s,
        seen.output_tokens, 0.0 if whole else seen.generation_s,
    )  # fmt: skip


def recorded(endpoint: Endpoint, seen: Seen, began: float, first: float | None, ended: float) -> AttemptRecord:
    """What the serving process writes down of the same attempt."""
    good = seen.outcome is Outcome.OK
    record = attempt_record(
        endpoint, replica="test", kind="live", outcome=seen.outcome, started=began, now=ended,
        ttft_s=seen.ttft_s or (None if first is None else first - began),
        generation_s=seen.generation_s if good and seen.ttft_s is not None else None,
        output_tokens=seen.output_tokens if good else None,
    )  # fmt: skip
    return record if seen.reply_s is None else dataclasses.replace(record, latency_ms=seen.reply_s * 1e3)


def write(root: Path, lived: Lived, feature_set: str) -> None:
    writer = SegmentWriter(root, "test", 1)
    writer.write("attempts", lived.attempts)
    writer.write("health", [dataclasses.replace(row, feature_set=feature_set) for row in lived.logged])
    writer.close()


def test_filled_in_vectors_are_those_that_were_logged_bit_for_bit(lived: Lived, tmp_path: Path) -> None:
    write(tmp_path, lived, FEATURE_SET)
    with connect(tmp_path) as connection:
        logged = training_rows(connection, 60.0, 0.0, 2e9, FEATURE_SET)
        # Attempts that had not ended when the world did are in nobody's record.
        settled = logged.time < logged.time[-1] - 40
        filled = backfilled(connection, logged)
    assert settled.sum() > 500
    assert np.array_equal(filled.x[settled], logged.x[settled])
    assert len(np.unique(filled.x[settled][:, NAMES.index("latency_z_60s")])) > 300, "the vectors say something"


def test_a_history_of_another_feature_set_is_filled_in_before_training(lived: Lived, tmp_path: Path) -> None:
    write(tmp_path / "history", lived, "f1-older")
    steps: list[str] = []
    report = retrain(tmp_path, since=0.0, until=2e9, settings=Settings(), progress=steps.append)
    assert "fill in the features" in steps
    assert report.verdict is Verdict.NOT_ENOUGH
    assert sum(report.rows) > 300


def test_each_replica_is_filled_in_from_what_it_did_itself(lived: Lived, tmp_path: Path) -> None:
    """Two services over one history, each with a scoring process that hears of its own attempts alone."""
    write(tmp_path, lived, FEATURE_SET)
    other = SegmentWriter(tmp_path, "idle", 1)
    busy = [row for row in lived.logged if row.replica == "test-scoring"][-200:]
    other.write("health", [dataclasses.replace(row, replica="idle-scoring") for row in busy])
    other.close()
    with connect(tmp_path) as connection:
        logged = training_rows(connection, 60.0, 0.0, 2e9, FEATURE_SET)
        filled = backfilled(connection, logged)
    idle = logged.replica == "idle-scoring"
    settled = ~idle & (logged.time < logged.time[-1] - 40)
    assert np.array_equal(filled.x[settled], logged.x[settled])
    assert idle.sum() == 200
    assert not filled.x[idle][:, NAMES.index("attempts_300s")].any()
