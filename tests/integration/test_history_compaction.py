"""History survives whatever is killed: every acknowledged row is visible exactly once, at any moment."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import pytest

from analytics.compaction import CompactionReport, Compactor
from analytics.files import DATA, live_segments
from analytics.manifest import read_manifest
from analytics.segments import SegmentWriter
from analytics.store import connect, refresh
from tests.history_records import T0, request, transition

DAY_S = 86_400.0

# Each process acknowledges on its standard output what it has made durable.
WRITER = """
import sys
from pathlib import Path
from analytics.segments import SegmentWriter
from tests.history_records import T0, request
root, name, epoch = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
writer = SegmentWriter(root, name, epoch)
for number in range(10**6):
    writer.write("requests", [
        request(time=T0 + 60.0 * number, endpoint=f"{name}-{epoch}-{number}-{i}") for i in range(20)
    ])
    print(number, flush=True)
"""
LOCK_HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(60)
"""
COMPACTOR = """
import sys, time
from pathlib import Path
from analytics.compaction import Compactor
compactor = Compactor(Path(sys.argv[1]), grace_s=float(sys.argv[2]))
while True:
    print(compactor.run_once(time.time()), flush=True)
"""


def visible(connection: duckdb.DuckDBPyConnection) -> tuple[int, int]:
    rows = connection.execute("SELECT count(*), count(DISTINCT endpoint) FROM requests").fetchall()
    return int(rows[0][0]), int(rows[0][1])


def kill_and_count(process: subprocess.Popen[str]) -> int:
    """Kill -9, and return how many lines it had acknowledged."""
    process.send_signal(signal.SIGKILL)
    return len([line for line in process.communicate()[0].splitlines() if line])


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_f20_killed_writers_and_compactors_lose_and_double_nothing(tmp_path: Path) -> None:
    """F-20: kill -9 at random points, with a reader watching: acknowledged rows are visible, none twice."""
    chances = random.Random(20)
    acknowledged = killed_compactors = 0
    seen = 0
    connection = connect(tmp_path)
    pause = threading.Event()
    for epoch in range(3):
        writers = [start(WRITER, tmp_path, name, epoch) for name in ("a", "b")]
        compactors = []
        try:
            for writer in writers:
                assert writer.stdout
                writer.stdout.readline()
                acknowledged += 1
            for _ in range(3):
                compactors.append(start(COMPACTOR, tmp_path, 30.0))
                compactor = compactors[-1]
                assert compactor.stdout
                compactor.stdout.readline()
                pause.wait(chances.uniform(0.0, 0.1))
                refresh(connection, tmp_path)
                rows, distinct = visible(connection)
                assert rows == distinct, "a row was seen twice"
                assert rows >= seen, "a row that was visible is gone"
                seen = rows
                kill_and_count(compactor)
                killed_compactors += 1
        finally:
            acknowledged += sum(kill_and_count(writer) for writer in writers)
            for compactor in compactors:
                if compactor.poll() is None:
                    kill_and_count(compactor)
    refresh(connection, tmp_path)
    rows, distinct = visible(connection)
    assert rows == distinct
    # A writer may have been killed between making its last segment visible and saying so.
    assert 20 * acknowledged <= rows <= 20 * (acknowledged + 6)
    assert killed_compactors == 9

    report = Compactor(tmp_path, grace_s=0.0).run_once(time.time())
    assert report.ran
    Compactor(tmp_path, grace_s=0.0).run_once(time.time() + 1.0)
    assert live_segments(tmp_path) == {}
    refresh(connection, tmp_path)
    assert visible(connection) == (rows, rows)
    listed = {part.path for parts in read_manifest(tmp_path).parts.values() for part in parts}
    assert {str(path.relative_to(tmp_path)) for path in (tmp_path / DATA).rglob("*.*")} == listed


@pytest.fixture
def writer(tmp_path: Path) -> SegmentWriter:
    return SegmentWriter(tmp_path, "r1", 1)


def test_rows_are_filed_by_day_and_sorted_by_time(tmp_path: Path, writer: SegmentWriter) -> None:
    writer.write("requests", [request(time=T0 + DAY_S), request(time=T0 + 5)])
    writer.write("requests", [request(time=T0 + 3)])
    writer.write("transitions", [transition(time=T0, to_state="ejected")])
    report = Compactor(tmp_path).run_once(T0)
    assert report == CompactionReport(ran=True, segments=3, rows=4, parts=3)
    manifest = read_manifest(tmp_path)
    assert [(part.path, part.rows) for part in manifest.parts["requests"]] == [
        ("data/requests/day=2025-06-15/part-00000001.parquet", 2),
        ("data/requests/day=2025-06-16/part-00000001.parquet", 1),
    ]
    first = tmp_path / manifest.parts["requests"][0].path
    times = duckdb.execute(f"SELECT epoch(time) - {T0} FROM '{first}'").fetchall()  # noqa: S608 - our own path
    assert times == [(3.0,), (5.0,)]
    assert visible(connect(tmp_path))[0] == 3


def test_a_run_without_news_changes_nothing(tmp_path: Path, writer: SegmentWriter) -> None:
    writer.write("requests", [request()])
    compactor = Compactor(tmp_path)
    compactor.run_once(T0)
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    assert compactor.run_once(T0 + 1) == CompactionReport(ran=True)
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


def test_a_reader_may_use_what_it_saw_until_the_grace_period_ends(tmp_path: Path, writer: SegmentWriter) -> None:
    writer.write("requests", [request()])
    compactor = Compactor(tmp_path, grace_s=300.0)
    reader = connect(tmp_path)
    compactor.run_once(T0)
    compactor.run_once(T0 + 299)
    assert visible(reader)[0] == 1
    assert compactor.run_once(T0 + 300).removed == 1
    with pytest.raises(duckdb.IOException, match="0000000001"):
        visible(reader)
    refresh(reader, tmp_path)
    assert visible(reader)[0] == 1


def test_a_mark_outlives_its_segments_by_the_grace_period(tmp_path: Path, writer: SegmentWriter) -> None:
    """A reader that listed a segment just before it went must still find it covered."""
    segment = writer.write("requests", [request()])
    compactor = Compactor(tmp_path, grace_s=300.0)
    compactor.run_once(T0)
    compactor.run_once(T0 + 1_000)
    assert not segment.exists()
    assert read_manifest(tmp_path).covers("r1-1", "requests", 1)
    compactor.run_once(T0 + 1_300)
    assert not read_manifest(tmp_path).covers("r1-1", "requests", 1)
    writer.write("requests", [request()])
    assert visible(connect(tmp_path))[0] == 2


def test_a_day_holds_few_parts_and_few_rewrites(tmp_path: Path, writer: SegmentWriter) -> None:
    compactor = Compactor(tmp_path)
    written = 0
    for number in range(32):
        writer.write("requests", [request(time=T0 + number)])
        compactor.run_once(T0 + number)
        written += sum(part.rows for part in read_manifest(tmp_path).parts["requests"][-1:])
    assert len(read_manifest(tmp_path).parts["requests"]) <= 5
    assert written <= 32 * 6
    assert visible(connect(tmp_path))[0] == 32


def test_a_second_compactor_stands_back(tmp_path: Path, writer: SegmentWriter) -> None:
    writer.write("requests", [request()])
    holder = start(
        LOCK_HOLDER,
        tmp_path / "compactor.lock",
    )
    try:
        assert holder.stdout
        holder.stdout.readline()
        assert Compactor(tmp_path).run_once(T0) == CompactionReport(ran=False)
    finally:
        holder.kill()
        holder.communicate()
    assert Compactor(tmp_path).run_once(T0).segments == 1


def test_a_damaged_segment_is_set_aside_and_the_rest_is_compacted(tmp_path: Path, writer: SegmentWriter) -> None:
    damaged = writer.write("requests", [request()])
    damaged.write_bytes(b"not Parquet")
    writer.write("requests", [request()])
    report = Compactor(tmp_path).run_once(T0)
    assert report.segments == 1
    assert len(report.quarantined) == 1
    assert "0000000001.parquet" in report.quarantined[0]
    assert (tmp_path / "quarantine" / "r1-1-requests-0000000001.parquet").read_bytes() == b"not Parquet"
    assert visible(connect(tmp_path))[0] == 1


def test_parts_past_their_retention_go(tmp_path: Path, writer: SegmentWriter) -> None:
    writer.write("requests", [request(time=T0), request(time=T0 + 10 * DAY_S)])
    compactor = Compactor(tmp_path, grace_s=60.0, retention_s=7 * DAY_S)
    compactor.run_once(T0 + 10 * DAY_S)
    assert visible(connect(tmp_path))[0] == 1
    compactor.run_once(T0 + 10 * DAY_S + 60)
    assert [path.name for path in (tmp_path / DATA / "requests").iterdir()] == ["day=2025-06-25"]


def test_f20_a_disk_that_refuses_mid_file_leaves_no_trace_and_heals(tmp_path: Path) -> None:
    """F-20: a file-size limit stands for the full disk: DuckDB's write itself fails, in a process of its own."""
    script = """
import resource, sys, threading, time
from pathlib import Path
from analytics.segments import SegmentWriter
from analytics.writer import HistoryWriter
from tests.history_records import request
resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
writer = HistoryWriter(SegmentWriter(Path(sys.argv[1]), "r1", 1), flush_s=0.01, flush_rows=100, max_backoff_s=0.05)
for number in range(1_000):
    writer.put(request(endpoint=f"e{number}"))
deadline, pause = time.monotonic() + 20, threading.Event()
while not writer.stats().last_error and time.monotonic() < deadline:
    pause.wait(0.01)
refused = writer.stats()
assert refused.last_error and not refused.written and not refused.rejected, refused
assert not list(Path(sys.argv[1]).rglob("*.parquet"))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(writer.close(20.0).written)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
    assert visible(connect(tmp_path)) == (1_000, 1_000)
    assert not list(tmp_path.rglob("*.tmp"))
