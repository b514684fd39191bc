"""The demo is the first thing a new user runs: its fast form tells the whole story on real processes, and says so."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from analytics.queries import Summary
from sim.demo.checks import judge
from sim.demo.evidence import Evidence
from sim.demo.load import Sent
from sim.demo.story import FAST_SCALE, load_story

ROOT = Path(__file__).parents[2]
LIMIT_S = 150


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "sim.demo", "--fast", "--out", str(out)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False), out


def test_the_story_happens_and_the_exit_status_says_so(
    told: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    process, out = told
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-3000:]
    report = json.loads((out / "report.json").read_text())
    assert report["held"] is True
    assert all(check["held"] for check in report["checks"])


def test_the_report_tells_who_moved_the_traffic_and_what_callers_saw(
    told: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    """F-01, F-02, F-08, F-09, F-17 as one user sees them: every figure is from the history."""
    _, out = told
    report = json.loads((out / "report.json").read_text())
    callers, summary = report["callers"], report["summary"]
    assert set(callers["by_method"]) == {
        "grpc complete", "grpc stream", "grpc embed", "openai chat", "openai stream",
    }  # fmt: skip
    assert summary["requests"] == callers["sent"] > 500
    assert summary["failed"] == callers["failed"]
    assert 0 < summary["latency_p50_ms"] <= summary["latency_p95_ms"] <= summary["latency_p99_ms"]
    left = {failover["provider"]: failover for failover in reversed(report["failovers"])}
    assert left["aurora"]["lead_s"] > 0
    assert left["borealis"]["lead_s"] < 0
    assert left["borealis"]["state"] == "ejected"
    assert left["cirrus"]["state"] == "degraded"


def test_the_plot_is_a_picture_with_something_on_it(told: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, out = told
    with Image.open(out / "demo.png") as picture:
        width, height = picture.size
        colours = picture.convert("RGB").getcolors(maxcolors=width * height)
    assert min(width, height) >= 800
    assert colours is not None
    assert len(colours) > 50


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A job in the background of a shell ignores SIGINT, and so would what it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_an_interrupted_demo_stops_its_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sim.demo", "--fast", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "requests/s" in process.stdout.readline()
        children = _descendants(process.pid)
        assert len(children) >= 2
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "all processes have ended" in rest
    assert not [pid for pid in children if _alive(pid)]


def test_a_run_in_which_nothing_happened_is_judged_so_in_every_sentence() -> None:
    nothing = Summary(**dict.fromkeys((field.name for field in fields(Summary)), 0))
    evidence = Evidence(nothing, (), (), (), moves=(), choices=(), risks={}, ttfts_ms={}, rescued_s=(), rows={})
    checks = judge(load_story(FAST_SCALE), evidence, sent=(), began=0.0)
    assert [check.sentence for check in checks if check.held] == []


def test_a_failure_that_a_caller_saw_and_a_request_that_history_lost_are_named() -> None:
    story = load_story(FAST_SCALE)
    nothing = Summary(**dict.fromkeys((field.name for field in fields(Summary)), 0))
    sent = [Sent(f"demo-{n}", "grpc complete", story.chat, float(n), n + 0.1, "") for n in range(500)]
    sent.append(Sent("demo-lost", "openai chat", story.chat, 500.0, 500.1, "APIStatusError: 503"))
    rows = {one.request_id: 1 for one in sent if one.request_id != "demo-lost"} | {"demo-7": 2}
    evidence = Evidence(nothing, (), (), (), moves=(), choices=(), risks={}, ttfts_ms={}, rescued_s=(), rows=rows)
    *_, served, whole = judge(story, evidence, sent, began=0.0)
    assert (served.held, whole.held) == (False, False)
    assert "demo-lost: APIStatusError: 503" in served.figures
    assert whole.figures == "501 sent, 1 missing, 1 repeated, 0 foreign"


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (int(word) for word in (task / "children").read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
