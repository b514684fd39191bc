"""The history writer never hurts its caller: it waits, drops the oldest, rejects the impossible, and says so."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from analytics.segments import SegmentWriter
from analytics.store import connect
from analytics.writer import HistoryWriter, WriterStats
from tests.history_records import request

DEADLINE_S = 20.0


def wait_for(writer: HistoryWriter, done: Callable[[WriterStats], bool]) -> WriterStats:
    give_up = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not done(stats := writer.stats()):
        assert time.monotonic() < give_up, stats
        pause.wait(0.005)
    return stats


def count(root: Path) -> int:
    return int(connect(root).execute("SELECT count(*) FROM requests").fetchall()[0][0])


def test_rows_of_many_threads_all_arrive(tmp_path: Path) -> None:
    writer = HistoryWriter(SegmentWriter(tmp_path, "r1", 1), flush_s=0.02, flush_rows=500)

    def put_many() -> None:
        for _ in range(1_000):
            writer.put(request())

    threads = [threading.Thread(target=put_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(DEADLINE_S) == WriterStats(written=4_000, dropped=0, rejected=0, pending=0, last_error="")
    assert count(tmp_path) == 4_000


def test_a_full_buffer_is_flushed_before_its_time(tmp_path: Path) -> None:
    writer = HistoryWriter(SegmentWriter(tmp_path, "r1", 1), flush_s=3_600.0, flush_rows=10)
    for _ in range(10):
        writer.put(request())
    assert wait_for(writer, lambda stats: stats.written == 10).pending == 0
    writer.close(DEADLINE_S)


def test_a_poisoned_row_is_rejected_alone(tmp_path: Path) -> None:
    writer = HistoryWriter(SegmentWriter(tmp_path, "r1", 1), flush_s=3_600.0, flush_rows=1_000)
    for index in range(300):
        writer.put(request(ttft_ms=cast("Any", "slow") if index in (0, 150, 299) else 1.0))
    writer.put(cast("Any", {"no": "record"}))
    stats = writer.close(DEADLINE_S)
    assert (stats.written, stats.rejected, stats.pending) == (297, 4, 0)
    assert "ttft_ms" in stats.last_error
    assert count(tmp_path) == 297


def test_f20_a_refusing_disk_costs_the_oldest_rows_only_and_heals(tmp_path: Path) -> None:
    """F-20: when history cannot be written, callers go on; what fits in memory is written once the disk takes it."""
    segments = SegmentWriter(tmp_path, "r1", 1)
    obstacle = tmp_path / "live" / "r1-1" / "requests"
    obstacle.write_text("a file where a directory must be")
    writer = HistoryWriter(segments, flush_s=0.01, flush_rows=10, max_pending=50, max_backoff_s=0.02)
    for index in range(10):
        writer.put(request(time=1_000.0 + index))
    wait_for(writer, lambda stats: "requests" in stats.last_error and stats.pending == 10)
    for index in range(10, 120):
        writer.put(request(time=1_000.0 + index))
    stats = wait_for(writer, lambda stats: stats.pending == 50)
    assert (stats.written, stats.dropped) == (0, 70)
    obstacle.unlink()
    wait_for(writer, lambda stats: stats.written == 50)
    assert writer.close(DEADLINE_S).pending == 0
    oldest = connect(tmp_path).execute("SELECT epoch(min(time)), count(*) FROM requests").fetchall()
    assert oldest == [(1_070.0, 50)]
    assert not list(tmp_path.rglob("*.tmp"))


def test_close_gives_up_at_its_deadline_when_the_disk_refuses(tmp_path: Path) -> None:
    segments = SegmentWriter(tmp_path, "r1", 1)
    (tmp_path / "live" / "r1-1" / "requests").write_text("a file where a directory must be")
    writer = HistoryWriter(segments, flush_s=0.01, flush_rows=10)
    writer.put(request())
    stats = writer.close(0.1)
    assert (stats.written, stats.pending) == (0, 1)
    assert stats.last_error


@pytest.mark.parametrize(
    ("name", "value"), [("flush_s", 0.0), ("flush_rows", 0), ("max_backoff_s", -1.0), ("max_pending", 10)]
)
def test_impossible_parameters_are_named(tmp_path: Path, name: str, value: float) -> None:
    parameters: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} = "):
        HistoryWriter(SegmentWriter(tmp_path, "r1", 1), **parameters)
