"""Records become files and come back as they were; what does not fit is refused whole."""

import math
import struct
from pathlib import Path

import duckdb
import numpy as np
import pytest

from analytics.columnar import to_columns
from analytics.errors import ForeignFileError, HistoryError
from analytics.records import RECORD_TYPES, columns_of
from analytics.segments import SegmentWriter
from analytics.store import connect, refresh
from tests.history_records import T0, health, request


def test_every_stream_describes_each_of_its_columns() -> None:
    for stream in RECORD_TYPES:
        columns = columns_of(stream)
        assert [column.name for column in columns[:2]] == ["replica", "time"]
        assert all(column.meaning for column in columns)


def test_a_request_comes_back_as_it_was(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "r1", 1)
    path = writer.write("requests", [request(failed_over=True), request(failed_over=True, ttft_ms=None)])
    assert path == tmp_path / "live" / "r1-1" / "requests" / "0000000001.parquet"
    rows = connect(tmp_path).execute(
        "SELECT request_id, failed_over, ttft_ms, input_tokens, output_tokens, epoch_us(time) FROM requests"
    ).fetchall()  # fmt: skip
    assert rows == [
        ("ü'\x00𝄞", True, 12.5, 2**40, None, int(T0 * 1e6)),
        ("ü'\x00𝄞", True, None, 2**40, None, int(T0 * 1e6)),
    ]


def test_features_round_trip_bit_for_bit(tmp_path: Path) -> None:
    odd = (1 / 3, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308)
    SegmentWriter(tmp_path, "r1", 1).write("health", [health(odd), health(())])
    kept, empty = (row[0] for row in connect(tmp_path).execute("SELECT features FROM health").fetchall())
    assert struct.pack("7d", *kept) == struct.pack("7d", *odd)
    assert empty == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("time", None),
        ("time", math.nan),
        ("time", -1.0),
        ("request_id", 7),
        ("request_id", "\ud800"),
        ("attempts", 1.5),
        ("attempts", 2**63),
        ("failed_over", 1),
        ("latency_ms", "fast"),
        ("latency_ms", None),
    ],
)
def test_a_value_that_fits_no_column_names_the_column(field: str, value: object) -> None:
    record = request()
    object.__setattr__(record, field, value)  # as a caller without a type checker would
    with pytest.raises((TypeError, ValueError), match=f"requests.{field}: expected"):
        to_columns("requests", [record])


def test_a_refused_write_leaves_no_file_and_keeps_its_number(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "r1", 1)
    (tmp_path / "live" / "r1-1" / "requests").write_text("a file where a directory must be")
    with pytest.raises(OSError, match="requests"):
        writer.write("requests", [request()])
    (tmp_path / "live" / "r1-1" / "requests").unlink()
    assert writer.write("requests", [request()]).name == "0000000001.parquet"
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_writers_cannot_share_a_directory(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "r1", 1)
    with pytest.raises(FileExistsError):
        SegmentWriter(tmp_path, "r1", 1)


@pytest.mark.parametrize("replica", ["", "../up", "a/b", ".hidden", "a*"])
def test_a_replica_that_is_no_file_name_is_refused(tmp_path: Path, replica: str) -> None:
    with pytest.raises(HistoryError, match="replica"):
        SegmentWriter(tmp_path, replica, 1)


def test_an_empty_history_has_all_views_with_their_columns(tmp_path: Path) -> None:
    connection = connect(tmp_path / "missing")
    for stream in RECORD_TYPES:
        described = [tuple(row[:2]) for row in connection.execute(f"DESCRIBE {stream}").fetchall()]
        assert described == [(column.name, column.duckdb_type) for column in columns_of(stream)]
        assert connection.execute(f"SELECT count(*) FROM {stream}").fetchone() == (0,)  # noqa: S608 - our own names


def test_refresh_shows_what_came_since(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, "r1", 1)
    connection = connect(tmp_path)
    for expected in (1, 2):
        writer.write("requests", [request()])
        refresh(connection, tmp_path)
        assert connection.execute("SELECT count(*) FROM requests").fetchone() == (expected,)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "r1", 1).write("requests", [request()])
    damaged = tmp_path / "live" / "r1-1" / "requests" / "0000000002.parquet"
    damaged.write_bytes(b"PAR1 this is no Parquet file PAR1")
    with pytest.raises(ForeignFileError, match=r"0000000002\.parquet"):
        connect(tmp_path)


def test_a_foreign_file_is_named_with_the_difference(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "r1", 1).write("requests", [request()])
    foreign = tmp_path / "live" / "r1-1" / "requests" / "0000000002.parquet"
    duckdb.execute(f"COPY (SELECT 1 AS answer) TO '{foreign}'")
    with pytest.raises(ForeignFileError, match=r"0000000002.parquet.*answer INTEGER"):
        connect(tmp_path)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"version": 1, "parts": 7}')
    with pytest.raises(ForeignFileError, match=r"manifest.json.*parts"):
        connect(tmp_path)


def test_a_matrix_of_equal_lists_stays_a_list_column() -> None:
    columns = to_columns("health", [health((1.0, 2.0)), health((3.0, 4.0))])
    assert columns["features"].shape == (2,)
    assert columns["time"].dtype == np.dtype("datetime64[us]")
