"""What the scoring process says of the history it compacts: what needs an operator's eye, each thing once."""

import logging
from pathlib import Path

import pytest

from analytics.compaction import Compactor
from analytics.files import MANIFEST
from analytics.records import LAYOUT
from analytics.segments import SegmentWriter
from scoring.worker import compact
from tests.history_layouts import names_of, segment, write_as
from tests.history_records import T0, health


def test_segments_that_cannot_be_compacted_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One of a later version stays where it is; a damaged one is set aside. The others are compacted."""
    later = write_as(segment(tmp_path, "health", "later-1"), [health()], names_of("health"), layout=LAYOUT + 1)
    damaged = segment(tmp_path, "health", "damaged-1")
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not Parquet")
    whole = SegmentWriter(tmp_path, "own", 1).write("health", [health()])
    compactor, told = Compactor(tmp_path, grace_s=0.0), set[str]()
    for now in (T0, T0 + 60, T0 + 120):
        compact(compactor, now, told)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"set aside: {damaged}: " in said[0]
    assert f"left as it is: {later}: written by a later version" in said[1]
    assert later.exists()
    assert not whole.exists()


def test_a_manifest_that_cannot_be_read_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / MANIFEST).write_text("no manifest")
    told: set[str] = set()
    for now in (T0, T0 + 60):
        compact(Compactor(tmp_path), now, told)
    (record,) = caplog.records
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert f"history cannot be compacted: {tmp_path / MANIFEST}" in record.getMessage()


def test_an_error_of_the_disk_is_told_each_time_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history").write_text("a file is in the way")
    told: set[str] = set()
    for now in (T0, T0 + 60):
        compact(Compactor(tmp_path / "history"), now, told)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
