"""The retraining job on a history written as the service writes it."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from analytics.records import AttemptRecord, HealthRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from scoring.artifact import ArtifactError, load
from scoring.features import FEATURE_SET, Member, matrix
from scoring.job import BusyError, RetrainReport, Settings, Verdict, retrain
from scoring.packing import pack
from scoring.registry import PRIOR, Registry
from scoring.report import page
from sim.traffic import play, traces
from sim.world import START_S, Setting, make_world
from tests.forecasters import manifest, stump

SEEDS = (11, 12, 13)
SPAN = (START_S, START_S + 5_000.0)
QUICK = Settings(block_s=150.0, min_blocks=3, shadow_s=0.0, seed=3)


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
    """A data directory of its own that shares the compacted history."""
    shutil.copytree(history / "history", target / "history")
    return target


def run(data_dir: Path, **changed: float) -> RetrainReport:
    settings = dataclasses.replace(QUICK, **changed)  # type: ignore[arg-type]
    return retrain(data_dir, since=SPAN[0], until=SPAN[1], settings=settings)


def events(data_dir: Path) -> list[tuple[str, str]]:
    with connect(data_dir / "history") as connection:
        rows = connection.execute("SELECT event, version FROM model_events WHERE metric <> 'probe_versus_live_z'")
        return [(str(event), str(version)) for event, version in rows.fetchall()]


def test_the_verdict_follows_from_the_figures(history: Path, tmp_path: Path) -> None:
    data_dir, steps = copy_of(history, tmp_path), list[str]()
    report = retrain(data_dir, since=SPAN[0], until=SPAN[1], settings=QUICK, progress=steps.append)
    assert report.gate is not None, report.reason
    assert min(report.incidents) >= 1
    gate = report.gate
    assert {c.rival for c in gate.comparisons[1:]} <= {"level", "breaker"}
    assert gate.comparisons[0].rival == load(PRIOR).manifest.version
    beaten = all(c.low >= 0 for c in gate.comparisons[1:]) and gate.comparisons[0].difference >= 0
    assert beaten or not gate.passed
    assert (report.verdict is Verdict.PROMOTED) == gate.passed
    assert served(data_dir) == report.champion
    registered = load(data_dir / "models" / report.candidate).manifest
    assert (registered.parent, registered.skill) == (load(PRIOR).manifest.version, gate.skill)
    assert registered.kind in ("trees", "logistic", "level")
    assert (registered.data_from, registered.data_until) == SPAN
    assert events(data_dir)[0] == ("registered" if gate.passed else "kept", report.candidate)
    assert steps[:2] == ["read the history", "fit the trees"]


def test_the_job_is_reproducible(history: Path, tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report = run(copy_of(history, tmp_path / name))
        digests.add(load(tmp_path / name / "models" / report.candidate).manifest.arrays_sha256)
    assert len(digests) == 1


def test_two_runs_at_once_are_one_too_many(history: Path, tmp_path: Path) -> None:
    data_dir = copy_of(history, tmp_path)

    def meanwhile(step: str) -> None:
        if step == "read the history":
            with pytest.raises(BusyError, match="another run"):
                run(data_dir)
            raise InterruptedRunError

    with pytest.raises(InterruptedRunError):
        retrain(data_dir, since=SPAN[0], until=SPAN[1], settings=QUICK, progress=meanwhile)
    assert served(data_dir) == load(PRIOR).manifest.version


class InterruptedRunError(Exception):
    """What a test does to the job."""


def test_too_short_a_history_says_how_much_is_needed(history: Path, tmp_path: Path) -> None:
    report = run(copy_of(history, tmp_path), block_s=86_400.0)
    assert report.verdict is Verdict.NOT_ENOUGH
    assert "needed: 3 blocks of 24 h, so a history of about 288 h" in report.reason


def test_an_empty_history_says_what_is_needed(tmp_path: Path) -> None:
    report = run(tmp_path)
    assert report.verdict is Verdict.NOT_ENOUGH
    assert report.reason.startswith("0 rows and 0 incidents")
    assert "needed: 1000 rows" in report.reason
    assert report.champion == load(PRIOR).manifest.version


def test_a_disk_that_refuses_leaves_the_serving_model(history: Path, tmp_path: Path) -> None:
    data_dir = copy_of(history, tmp_path)
    (data_dir / "models").write_text("a file is in the way")
    with pytest.raises((OSError, ArtifactError)):
        run(data_dir)
    assert served(data_dir) == load(PRIOR).manifest.version


# Shadows: what champion and shadow said about live traffic decides.

HOURS = 3
ONSETS = tuple(START_S + 900.0 + 1800.0 * i for i in range(2 * HOURS))


def watched_history(data_dir: Path, *, champion_foresees: bool, shadow_foresees: bool) -> Registry:
    """Three hours with an outage of a minute each half hour; whoever foresees says so 40 s ahead, the other never."""
    writer = SegmentWriter(data_dir / "history", "test", 1)
    outage = {second for onset in ONSETS for second in range(int(onset), int(onset) + 60)}
    seconds = range(int(START_S), int(START_S) + 3600 * HOURS)
    writer.write("attempts", [attempt("e", now, failed=now in outage) for now in seconds])
    soon = {second for onset in ONSETS for second in range(int(onset) - 40, int(onset) + 60)}

    def said(now: int, foresees: bool) -> float:
        return 0.9 if foresees and now in soon else 0.01

    rows = [
        health("e", now, risk=said(now, champion_foresees), shadow_risk=said(now, shadow_foresees))
        for now in seconds[::5]
    ]
    writer.write("health", rows)
    writer.close()
    registry, arrays = Registry(data_dir), pack(stump())
    registry.register(arrays, manifest(arrays, "shadow-1"))
    registry.watch("shadow-1", START_S)
    return registry


def attempt(endpoint: str, now: float, *, failed: bool) -> AttemptRecord:
    return AttemptRecord(
        replica="test", time=now, started=now, request_id="", decision_id="", number=1, kind="live", endpoint=endpoint,
        provider="p", region="r", zone="z", model="m", agent="", tenant="",
        outcome="server_error" if failed else "ok", http_status=None, error="", ttft_ms=None if failed else 100.0,
        latency_ms=1.0, input_tokens=None, output_tokens=None, cost_usd=None,
    )  # fmt: skip


def health(endpoint: str, now: float, *, risk: float, shadow_risk: float) -> HealthRecord:
    return HealthRecord(
        replica="test", time=now, endpoint=endpoint, provider="p", region="r", model="m", state="active", admission=1.0,
        score=1.0, risk=risk, forecaster="old", feature_set="another", features=(), shadow="shadow-1",
        shadow_risk=shadow_risk,
    )  # fmt: skip


def judge_shadow(data_dir: Path, **changed: float) -> RetrainReport:
    settings = dataclasses.replace(QUICK, shadow_s=2 * 3600.0, block_s=1800.0, **changed)  # type: ignore[arg-type]
    return retrain(data_dir, since=START_S, until=START_S + 3600.0 * HOURS, settings=settings)


def test_a_shadow_that_warned_of_what_the_champion_missed_is_promoted(tmp_path: Path) -> None:
    registry = watched_history(tmp_path, champion_foresees=False, shadow_foresees=True)
    report = judge_shadow(tmp_path)
    assert (report.verdict, report.champion) == (Verdict.PROMOTED, "shadow-1")
    assert registry.roles().champion == "shadow-1"
    assert registry.roles().shadow is None
    assert events(tmp_path) == [("promoted", "shadow-1")]


def test_a_shadow_that_missed_what_the_champion_saw_is_given_up(tmp_path: Path) -> None:
    registry = watched_history(tmp_path, champion_foresees=True, shadow_foresees=False)
    report = judge_shadow(tmp_path)
    assert report.champion == load(PRIOR).manifest.version
    assert "shadow-1 as a shadow" in report.shadow_note
    assert registry.roles().retired == ("shadow-1",)
    assert events(tmp_path) == [("retired", "shadow-1")]


def test_a_shadow_that_cannot_be_loaded_any_more_is_given_up(tmp_path: Path) -> None:
    """A version with other features replaced the one that made it: retraining goes on without it."""
    registry = watched_history(tmp_path, champion_foresees=False, shadow_foresees=True)
    file = tmp_path / "models" / "shadow-1" / "manifest.json"
    file.write_text(file.read_text().replace(FEATURE_SET, "f1-0000000000"))
    report = judge_shadow(tmp_path)
    assert "shadow-1 cannot be watched" in report.shadow_note
    assert "f1-0000000000" in report.shadow_note
    assert (registry.roles().shadow, registry.roles().retired) == (None, ("shadow-1",))
    assert events(tmp_path) == [("retired", "shadow-1")]


def test_a_shadow_is_watched_until_there_is_evidence_enough_but_not_for_ever(tmp_path: Path) -> None:
    registry = watched_history(tmp_path, champion_foresees=False, shadow_foresees=True)
    report = judge_shadow(tmp_path, min_blocks=3, max_shadow_s=86_400.0 * 9)
    assert report.verdict is Verdict.PROMOTED
    registry.watch("shadow-1", START_S)
    for patience_s, still_watched in ((86_400.0, True), (3600.0, False)):
        settings = dataclasses.replace(QUICK, shadow_s=86_400.0, max_shadow_s=patience_s)
        waiting = retrain(tmp_path, since=START_S, until=START_S + 3600.0 * HOURS, settings=settings)
        assert "incidents watched so far" in waiting.shadow_note
        assert (registry.roles().shadow == "shadow-1") == still_watched
        assert ("shadow-1" in registry.roles().retired) != still_watched


def test_probes_that_say_something_else_than_the_traffic_are_named(tmp_path: Path) -> None:
    """Probes are answered while half of the live attempts around them fail: an event, and a line in the report. Probes
    of an endpoint that is out of service, without traffic beside them, are compared with nobody."""
    writer = SegmentWriter(tmp_path / "history", "test", 1)
    seconds = range(int(START_S), int(START_S) + 600)
    live = [attempt("e", now, failed=bool(now % 2)) for now in seconds]
    probes = [dataclasses.replace(attempt("e", now + 0.5, failed=False), kind="probe") for now in seconds[::5]]
    honest = [dataclasses.replace(row, endpoint="honest", kind=row.kind) for row in live]
    honest += [dataclasses.replace(row, endpoint="honest", kind="probe") for row in live[:100]]
    lone = [dataclasses.replace(attempt("out", now + 1_000, failed=True), kind="probe") for now in seconds] + [
        dataclasses.replace(row, endpoint="out", outcome="ok") for row in live
    ]
    writer.write("attempts", live + probes + honest + lone)
    writer.close()
    report = run(tmp_path)
    assert [found.endpoint for found in report.probes] == ["e"]
    with connect(tmp_path / "history") as connection:
        rows = connection.execute("SELECT event, metric, note, value < -threshold FROM model_events").fetchall()
    assert [(row[0], row[1], row[3]) for row in rows] == [("drift", "probe_versus_live_z", True)]
    assert rows[0][2].startswith("e: 0 of 120 probes failed, 3")
    assert "Probes of e do not speak for its traffic" in page(report, *SPAN)


def test_the_report_holds_every_picture_and_no_outside_asset(history: Path, tmp_path: Path) -> None:
    report = run(copy_of(history, tmp_path))
    text = page(report, *SPAN)
    for title in ("Reliability", "Recall against lead time", "Threshold", "Feature importance"):
        assert f"<title>{title}</title>" in text
    assert text.count("<svg") == 5
    assert not re.search(r"""(?:src|href)=|url\(|@import""", text)
    assert "nan" not in text.lower().replace("financ", "")
    assert report.gate is not None
    assert f"{report.gate.comparisons[0].difference:+.1f}" in text
