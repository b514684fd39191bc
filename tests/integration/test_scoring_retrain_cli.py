"""`routecast retrain` as cron runs it: one line per step, killed at each of them, never leaving half a model behind."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analytics.records import AttemptRecord, HealthRecord
from analytics.segments import SegmentWriter
from analytics.store import connect
from scoring.artifact import load
from scoring.features import FEATURE_SET, NAMES
from scoring.registry import PRIOR, Registry

DEADLINE_S = 120.0
HOURS = 2
COMMAND = [sys.executable, "-m", "service.cli"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last two hours: an outage of a minute every 20 minutes, announced half a minute ahead by one feature."""
    directory = tmp_path_factory.mktemp("data")
    begin = int(time.time()) - 3600 * HOURS
    outages = {s for onset in range(600, 3600 * HOURS, 1200) for s in range(onset, onset + 60)}
    announced = {s for onset in range(600, 3600 * HOURS, 1200) for s in range(onset - 30, onset + 60)}
    latency = NAMES.index("latency_shift_15s")
    evidence = (NAMES.index("baseline_samples"), NAMES.index("attempts_60s"))
    attempts, health = [], []
    for s in range(3600 * HOURS):
        failed = s in outages
        attempts.append(
            AttemptRecord(
                replica="t", time=begin + s, started=begin + s, request_id="", decision_id="", number=1, kind="live",
                endpoint="e", provider="p", region="r", zone="z", model="m", agent="", tenant="",
                outcome="server_error" if failed else "ok", http_status=None, error="",
                ttft_ms=None if failed else 100.0, latency_ms=1.0, input_tokens=None, output_tokens=None, cost_usd=None,
            )
        )  # fmt: skip
        row = [0.01 * ((s * 7 + i) % 5) for i in range(len(NAMES))]
        row[latency] = 1.0 if s in announced else 0.0
        for i in evidence:
            row[i] = 5.0
        health.append(
            HealthRecord(
                replica="t", time=begin + s, endpoint="e", provider="p", region="r", model="m", state="active",
                admission=1.0, score=1.0, risk=None, forecaster="", feature_set=FEATURE_SET, features=tuple(row),
            )
        )  # fmt: skip
    writer = SegmentWriter(directory / "history", "t", 1)
    writer.write("attempts", attempts)
    writer.write("health", health)
    writer.close()
    return directory


def retrain(data_dir: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "retrain", "--data", str(data_dir), "--since", "3h", "--block", "5m", "--watch", "0s"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def served(data_dir: Path) -> str:
    champion = Registry(data_dir).champion()
    assert champion.model is not None
    assert champion.problem == ""
    return champion.model.manifest.version


# The moment before anything is written, before the candidate is stored, and before it is given a role.
STEPS = ("judge", "register", "promote")


def killed_at(data_dir: Path, step: str) -> None:
    """Run the job and kill it the moment it says that this step begins."""
    assert step in STEPS
    with retrain(data_dir) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == step:
                process.send_signal(signal.SIGKILL)
                break
        else:
            raise AssertionError(f"the job never came to {step!r}")
        assert process.wait(DEADLINE_S) == -signal.SIGKILL


def test_f20_a_run_that_is_killed_anywhere_changes_nothing_and_the_next_one_succeeds(data_dir: Path) -> None:
    for step in STEPS:
        killed_at(data_dir, step)
        assert served(data_dir) == load(PRIOR).manifest.version, step
    with retrain(data_dir) as process:
        said, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, told
    assert told.splitlines()[:2] == ["read the history", "fit the trees"]
    assert said.startswith("promoted: "), said
    assert served(data_dir) != load(PRIOR).manifest.version
    (report,) = (data_dir / "reports").glob("retrain-*.html")
    assert "<title>Reliability</title>" in report.read_text(encoding="utf-8")

    rolled = subprocess.run(
        [*COMMAND, "models", "rollback", "--data", str(data_dir)], capture_output=True, text=True, check=True
    )
    assert rolled.stdout == f"serving {load(PRIOR).manifest.version}\n"
    listed = subprocess.run(
        [*COMMAND, "models", "list", "--data", str(data_dir)], capture_output=True, text=True, check=True
    )
    assert "retired" in listed.stdout
    with connect(data_dir / "history") as connection:
        found = connection.execute("SELECT event, actor FROM model_events ORDER BY time, event DESC").fetchall()
    assert found[-3:] == [("registered", "retrain"), ("promoted", "retrain"), ("rolled_back", "operator")]
