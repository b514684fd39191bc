"""The training job on a history written as the service writes it."""

from pathlib import Path

import numpy as np
import pytest

from analytics.records import AttemptRecord, HealthRecord
from analytics.segments import SegmentWriter
from scoring.artifact import ArtifactError, Manifest, checksum, code_version, libraries, load
from scoring.calibration import Calibration
from scoring.features import FEATURE_SET, NAMES, Member, matrix
from scoring.forecaster import Forecaster, Weighted
from scoring.job import TrainReport, Verdict, train
from scoring.linear import Linear
from scoring.metrics import Skill
from scoring.packing import pack
from scoring.registry import PRIOR, Registry
from sim.traffic import play, traces
from sim.world import START_S, Setting, make_world

SEEDS = (11, 12, 13)
SPAN = (START_S, START_S + 5_000.0)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of three worlds side by side, with the features of every fifth second."""
    data_dir = tmp_path_factory.mktemp("data")
    writer = SegmentWriter(data_dir / "history", "test", 1)
    for seed in SEEDS:
        write_world(writer, seed)
    writer.close()
    return data_dir


def write_world(writer: SegmentWriter, seed: int) -> None:
    world = make_world(seed, Setting.STEADY)
    found = traces(world)
    names = [f"w{seed}/{regime.id}" for regime in world.regimes]
    members = [Member(regime.place.provider, regime.place.region) for regime in world.regimes]
    for name, regime, trace in zip(names, world.regimes, found, strict=True):
        attempts = [
            AttemptRecord(
                replica="test", time=attempt.time, started=attempt.time, request_id="", decision_id="", number=1,
                kind="live", endpoint=name, provider=regime.place.provider, region=regime.place.region, zone="z",
                model="m", agent="", tenant="", outcome=attempt.outcome.value, http_status=None, error="",
                ttft_ms=None if attempt.ttft_s is None else attempt.ttft_s * 1e3, latency_ms=1.0, input_tokens=None,
                output_tokens=None, cost_usd=None,
            )
            for attempt in trace.attempts
        ]  # fmt: skip
        if attempts:
            writer.write("attempts", attempts)
    health = [
        HealthRecord(
            replica="test", time=now, endpoint=name, provider="p", region="r", model="m", state="active",
            admission=1.0, score=1.0, risk=None, forecaster="", feature_set=FEATURE_SET, features=tuple(row),
        )
        for now, windows in play(found, world.duration_s, 5.0)
        for name, row in zip(names, matrix(members, windows, now).tolist(), strict=True)
    ]  # fmt: skip
    writer.write("health", health)


def served(data_dir: Path) -> str:
    model = Registry(data_dir).champion().model
    assert model is not None
    return model.manifest.version


def copy_of(history: Path, target: Path) -> Path:
    """A data directory of its own that shares the history."""
    (target / "history").symlink_to(history / "history", target_is_directory=True)
    return target


def run(data_dir: Path) -> TrainReport:
    return train(data_dir, since=SPAN[0], until=SPAN[1], seed=3)


def test_the_verdict_follows_from_the_figures(history: Path, tmp_path: Path) -> None:
    data_dir = copy_of(history, tmp_path)
    report = run(data_dir)
    assert report.verdict in (Verdict.PROMOTED, Verdict.KEPT)
    assert report.candidate is not None
    assert report.champion is not None
    assert min(report.incidents) >= 1
    own, other = report.candidate, report.champion
    assert None not in (own.pr_auc, own.brier, own.brier_skill, other.pr_auc, other.brier)
    better = own.brier_skill > 0 and own.pr_auc >= other.pr_auc and own.brier <= other.brier  # type: ignore[operator]
    assert (report.verdict is Verdict.PROMOTED) == better, report
    assert served(data_dir) == report.version
    assert report.version == (report.candidate_version if better else load(PRIOR).manifest.version)
    manifest = load(data_dir / "models" / report.candidate_version).manifest
    assert manifest.parent == load(PRIOR).manifest.version
    assert manifest.skill == own


def test_a_champion_without_skill_is_replaced(history: Path, tmp_path: Path) -> None:
    data_dir = copy_of(history, tmp_path)
    promote_constant(data_dir)
    report = run(data_dir)
    assert report.verdict is Verdict.PROMOTED, report.reason
    assert served(data_dir) == report.candidate_version


def test_the_job_is_reproducible(history: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report = run(copy_of(history, tmp_path / name))
        digests.add(load(tmp_path / name / "models" / report.candidate_version).manifest.arrays_sha256)
    assert len(digests) == 1


def promote_constant(data_dir: Path) -> None:
    """Make a forecaster that always says 2 % the champion."""
    none = np.zeros(len(NAMES))
    says_nothing = Linear(none, none + 1, none, -4.0)
    arrays = pack(Forecaster((Weighted(1.0, says_nothing),), Calibration(), load(PRIOR).forecaster.domain))
    registry = Registry(data_dir)
    manifest = Manifest(
        version="constant", kind="logistic", code=code_version(), data_from=None, data_until=None, trained_at=None,
        seed=0, feature_set=FEATURE_SET, features=NAMES, horizon_s=60.0,
        threshold=0.5, libraries=libraries(), data="none", skill=Skill(0, 0.0, None, None, None),
        false_alarms_per_day=None, endpoint_days=0.0, incidents={}, parent=None, arrays_sha256=checksum(arrays),
    )  # fmt: skip
    registry.register(arrays, manifest)
    registry.promote("constant")


def test_an_empty_history_says_what_is_needed(tmp_path: Path) -> None:
    report = run(tmp_path)
    assert report.verdict is Verdict.NOT_ENOUGH
    assert report.reason.startswith("0 rows and 0 incidents")
    assert "needed: 1000 rows" in report.reason
    assert report.version == load(PRIOR).manifest.version
    assert not (tmp_path / "models").exists()


def test_a_disk_that_refuses_leaves_the_serving_model(history: Path, tmp_path: Path) -> None:
    data_dir = copy_of(history, tmp_path)
    (data_dir / "models").write_text("a file is in the way")
    with pytest.raises((OSError, ArtifactError)):
        run(data_dir)
    assert served(data_dir) == load(PRIOR).manifest.version
