"""History of every earlier layout reads with the defaults of what came later; history of a later one is refused."""

from pathlib import Path
from typing import Any

import duckdb
import pytest

from analytics.compaction import Compactor
from analytics.errors import ForeignFileError, NewerLayoutError
from analytics.files import LAYOUT_KEY
from analytics.records import FIRST_LAYOUT, LAYOUT, RECORD_TYPES, columns_of
from analytics.segments import SegmentWriter
from analytics.store import connect, refresh
from analytics.training import training_rows
from tests.history_layouts import names_of, segment, write_as
from tests.history_records import T0, attempt, health

# The columns that these two streams had in the first layout, which had no number yet.
FIRST_HEALTH = (
    "replica", "time", "endpoint", "provider", "region", "model", "state", "admission", "score", "risk", "forecaster",
    "feature_set", "features",
)  # fmt: skip
FIRST_ATTEMPTS = (
    "replica", "time", "started", "request_id", "decision_id", "number", "kind", "endpoint", "provider", "region",
    "zone", "model", "agent", "tenant", "outcome", "http_status", "error", "ttft_ms", "latency_ms", "input_tokens",
    "output_tokens", "cost_usd",
)  # fmt: skip
LATER_HEALTH = ("shadow", "shadow_risk", "alarm", "propensity", "explanation")


def later_values(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
    return connection.execute(f"FROM health SELECT {', '.join(LATER_HEALTH)} ORDER BY time").fetchall()


def test_f16_history_of_the_first_layout_reads_with_defaults_beside_todays(tmp_path: Path) -> None:
    write_as(segment(tmp_path, "health"), [health((1.0, 2.0))], FIRST_HEALTH)
    write_as(segment(tmp_path, "attempts"), [attempt(time=T0)], FIRST_ATTEMPTS)
    today = SegmentWriter(tmp_path, "new", 2)
    today.write("health", [health((3.0, 4.0), time=T0 + 1)])
    today.write("attempts", [attempt(time=T0 + 1)])
    connection = connect(tmp_path)
    assert later_values(connection) == [("", None, "", None, "")] * 2
    assert connection.execute("SELECT generation_ms, ttft_ms FROM attempts").fetchall() == [(None, 100.0)] * 2
    for stream in RECORD_TYPES:
        described = [tuple(row[:2]) for row in connection.execute(f"DESCRIBE {stream}").fetchall()]
        assert described == [(column.name, column.duckdb_type) for column in columns_of(stream)]
    assert training_rows(connection, 60.0, T0, T0 + 2).x.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    refresh(connection, tmp_path)
    assert later_values(connection) == [("", None, "", None, "")] * 2


@pytest.mark.parametrize("stream", RECORD_TYPES)
@pytest.mark.parametrize("layout", [None, *range(FIRST_LAYOUT, LAYOUT + 1)])
def test_every_stream_of_every_layout_reads(tmp_path: Path, stream: str, layout: int | None) -> None:
    names = names_of(stream, LAYOUT if layout is None else layout)
    path = segment(tmp_path, stream)
    path.parent.mkdir(parents=True)
    columns = ", ".join(f'CAST(NULL AS {c.duckdb_type}) AS "{c.name}"' for c in columns_of(stream) if c.name in names)
    number = "" if layout is None else f", KV_METADATA {{{LAYOUT_KEY}: '{layout}'}}"
    duckdb.execute(f"COPY (SELECT {columns}) TO '{path}' (FORMAT parquet{number})")
    defaults = tuple(None if c.name in names else c.default for c in columns_of(stream))
    assert connect(tmp_path).execute(f"FROM {stream}").fetchall() == [defaults]


def test_compaction_turns_every_layout_into_todays(tmp_path: Path) -> None:
    write_as(segment(tmp_path, "health"), [health((1.0,))], FIRST_HEALTH)
    write_as(segment(tmp_path, "health", number=2), [health((2.0,), time=T0 + 1)], names_of("health", 2), layout=2)
    SegmentWriter(tmp_path, "new", 2).write("health", [health((3.0,), time=T0 + 2)])
    report = Compactor(tmp_path).run_once(T0 + 10)
    assert (report.segments, report.rows, report.parts) == (3, 3, 1)
    (part,) = (tmp_path / "data").rglob("*.parquet")
    metadata = duckdb.execute(f"FROM parquet_kv_metadata('{part}') SELECT decode(key), decode(value)").fetchall()
    assert (LAYOUT_KEY, str(LAYOUT)) in metadata
    connection = connect(tmp_path)
    assert later_values(connection) == [("", None, "", None, "")] * 3
    assert connection.execute("SELECT features FROM health ORDER BY time").fetchall() == [([1.0],), ([2.0],), ([3.0],)]


def test_a_part_of_an_earlier_layout_is_absorbed(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, "new", 1).write("health", [health((1.0,))])
    Compactor(tmp_path).run_once(T0 + 10)
    (part,) = (tmp_path / "data").rglob("*.parquet")
    write_as(part, [health((1.0,))], FIRST_HEALTH)
    SegmentWriter(tmp_path, "new", 2).write("health", [health((2.0,), time=T0 + 1)])
    assert Compactor(tmp_path).run_once(T0 + 20).parts == 1
    assert later_values(connect(tmp_path)) == [("", None, "", None, "")] * 2


def test_history_of_a_later_layout_is_refused_by_file_and_number(tmp_path: Path) -> None:
    path = write_as(segment(tmp_path, "health"), [health()], names_of("health"), layout=LAYOUT + 1, extra=", 1 AS mood")
    with pytest.raises(NewerLayoutError) as raised:
        connect(tmp_path)
    assert raised.value.path == path
    expected = f"expected history of layout {LAYOUT} or before, found layout {LAYOUT + 1}"
    assert str(raised.value) == f"{path}: written by a later version: {expected}"


def test_a_compactor_leaves_segments_of_a_later_layout_and_what_their_writer_wrote_after(tmp_path: Path) -> None:
    """A version that was rolled back must neither lose nor hide what the later one wrote (F-20)."""
    names = names_of("health")
    for number, layout in ((1, LAYOUT), (2, LAYOUT + 1), (3, LAYOUT)):
        path = segment(tmp_path, "health", "both-1", number)
        write_as(path, [health((float(number),), time=T0 + number)], names, layout=layout)
    SegmentWriter(tmp_path, "new", 2).write("health", [health((4.0,), time=T0 + 4)])
    report = Compactor(tmp_path, grace_s=0).run_once(T0 + 10)
    assert (report.segments, report.quarantined) == (2, ())
    assert len(report.newer) == 1
    Compactor(tmp_path, grace_s=0).run_once(T0 + 20)
    left = sorted(path.name for path in (tmp_path / "live" / "both-1").rglob("*.parquet"))
    assert left == ["0000000002.parquet", "0000000003.parquet"]
    # The later version comes back: here it is this one, reading its own number.
    write_as(segment(tmp_path, "health", "both-1", 2), [health((2.0,), time=T0 + 2)], names, layout=LAYOUT)
    Compactor(tmp_path, grace_s=0).run_once(T0 + 30)
    rows = connect(tmp_path).execute("SELECT features FROM health ORDER BY time").fetchall()
    assert rows == [([1.0],), ([2.0],), ([3.0],), ([4.0],)]


@pytest.mark.parametrize(
    ("names", "layout", "extra", "problem"),
    [
        (FIRST_HEALTH[:-1], None, "", "features DOUBLE"),
        (FIRST_HEALTH, 2, "", "shadow_risk DOUBLE"),
        ((*FIRST_HEALTH, "alarm"), 1, "", "alarm VARCHAR"),
        (FIRST_HEALTH, None, ", 1 AS answer", "answer INTEGER"),
        (FIRST_HEALTH, None, ", 1 AS shadow", "shadow INTEGER"),
        (FIRST_HEALTH, "two", "", "a layout of history by its number, found 'two'"),
    ],
)
def test_columns_that_are_not_those_of_the_layout_are_named(
    tmp_path: Path, names: tuple[str, ...], layout: int | str | None, extra: str, problem: str
) -> None:
    write_as(segment(tmp_path, "health"), [health()], names, layout=layout, extra=extra)
    with pytest.raises(ForeignFileError, match=r"0000000001\.parquet") as raised:
        connect(tmp_path)
    assert problem in str(raised.value)
    assert not isinstance(raised.value, NewerLayoutError)
