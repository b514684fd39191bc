"""An analyst's SQL may read history and can change nothing."""

from pathlib import Path
from threading import Event
from typing import Any

import duckdb
import pytest

from analytics.errors import QueryRefusedError, QueryTimeoutError
from analytics.sandbox import run_sql
from analytics.segments import SegmentWriter
from analytics.store import connect
from tests.history_records import request


@pytest.fixture
def history(tmp_path: Path) -> Path:
    SegmentWriter(tmp_path, "r1", 1).write("requests", [request(), request(endpoint="b")])
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) FROM requests",
        "WITH x AS (SELECT 1 AS a) SELECT a FROM x UNION ALL SELECT 2",
        "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM t WHERE a < 3) FROM t",
        "FROM requests LIMIT 1;",
        "VALUES (1)",
        "DESCRIBE requests",
        "SHOW TABLES",
        "SUMMARIZE requests",
        "EXPLAIN SELECT 1",
        "explain analyze SELECT count(*) FROM requests",
        "PIVOT requests ON endpoint USING count(*)",
        "SELECT endpoint FROM requests WHERE status = 'copy' -- insert, delete",
        "SELECT * FROM range(3)",
        "SELECT * FROM degraded_moments(TIMESTAMP '2025-01-01', TIMESTAMP '2026-01-01')",
    ],
)
def test_statements_that_read_are_run(history: Path, text: str) -> None:
    answer = run_sql(connect(history), text)
    assert answer.columns
    assert all(len(row) == len(answer.columns) for row in answer.rows)
    assert not answer.cut


WRITES = [
    "COPY (SELECT 1) TO '{root}/x'",
    "WITH x AS (COPY (SELECT 1) TO '{root}/x') SELECT * FROM x",
    "SELECT * FROM (WITH x AS (COPY (SELECT 1) TO '{root}/x') SELECT * FROM x)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{root}/x'",
    "EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO '{root}/x') SELECT * FROM x",
    "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{root}/x'",
    "/* */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{root}/x'",
    "PIVOT (WITH x AS (COPY (SELECT 1 AS a) TO '{root}/x') FROM x) ON a USING count(*)",
    "FROM json_execute_serialized_sql(json_serialize_sql('WITH x AS (COPY (SELECT 1) TO ''{root}/x'') FROM x'))",
    "PIVOT (FROM json_execute_serialized_sql('')) ON a USING count(*)",
    "FROM query('SELECT 1')",
    "SELECT 1; COPY (SELECT 1) TO '{root}/x'",
    "CREATE TABLE x AS SELECT 1",
    "DROP VIEW requests",
    "SET threads = 1",
    "ATTACH '{root}/x.db'",
    "EXPORT DATABASE '{root}/x'",
    "CALL pragma_version()",
    "PRAGMA version",
    "INSTALL httpfs",
    "DELETE FROM history_files",
    "WITH x AS (DELETE FROM history_files RETURNING *) FROM x",
    "",
    "SELEC 1",
]


@pytest.mark.parametrize("text", WRITES)
def test_statements_that_write_are_refused_and_nothing_changes(history: Path, text: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in history.rglob("*")}
    with pytest.raises(QueryRefusedError):
        run_sql(connect(history), text.format(root=history))
    assert {path: path.stat().st_mtime_ns for path in history.rglob("*")} == before


def test_files_outside_the_history_cannot_be_read(history: Path) -> None:
    with pytest.raises(duckdb.PermissionException):
        run_sql(connect(history), "SELECT * FROM parquet_schema('/etc/hostname')")


@pytest.mark.parametrize("text", ["FROM range(5)", "WITH x AS (FROM range(5)) FROM x", "FROM requests, range(3)"])
@pytest.mark.parametrize(("most_rows", "is_cut"), [(1, True), (4, True), (1000, False)])
def test_no_more_rows_come_than_asked_for_and_it_is_told(
    history: Path, text: str, most_rows: int, is_cut: bool
) -> None:
    answer = run_sql(connect(history), text, most_rows=most_rows)
    assert answer.cut is is_cut
    assert len(answer.rows) == (most_rows if is_cut else len(run_sql(connect(history), text).rows))


def test_as_many_rows_as_there_are_is_not_cut(history: Path) -> None:
    assert not run_sql(connect(history), "FROM range(5)", most_rows=5).cut


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) FROM range(100000000000) AS a, range(100000000000) AS b WHERE a.range % 7 = b.range % 11",
        "EXPLAIN ANALYZE SELECT count(*) FROM range(100000000000) AS a, range(100000000000) AS b",
        "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM t) SELECT max(a) FROM t",
    ],
)
def test_a_statement_that_would_never_end_is_ended_and_the_next_one_runs(history: Path, text: str) -> None:
    connection = connect(history)
    with pytest.raises(QueryTimeoutError, match=r"after 0\.05 s"):
        run_sql(connection, text, timeout_s=0.05)
    assert run_sql(connection, "SELECT count(*) FROM requests", timeout_s=60.0).rows == [(2,)]


class BusyConnection:
    """A connection whose statement begins when the first interrupt has gone by, as on a busy machine."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._has_been_interrupted = Event()

    def interrupt(self) -> None:
        self._connection.interrupt()
        self._has_been_interrupted.set()

    def execute(self, text: str) -> duckdb.DuckDBPyConnection:
        self._has_been_interrupted.wait()
        return self._connection.execute(text)


def test_a_timeout_that_comes_before_the_statement_begins_ends_it_all_the_same(history: Path) -> None:
    """DuckDB forgets an interrupt when a statement begins."""
    connection: Any = BusyConnection(connect(history))
    with pytest.raises(QueryTimeoutError):
        run_sql(connection, "WITH RECURSIVE t AS (SELECT 1 UNION ALL SELECT 2 FROM t) FROM t", timeout_s=0.01)
