"""SQL from analysts: anything that reads, nothing that writes.

Rule of this file: allow, never deny by name. `connect` has already confined the connection to the history directory,
but inside it DuckDB would still write: `COPY` can hide in a `WITH`, and a table function can run a serialised
statement. So the statement is parsed by DuckDB itself, and every query node and table function in its syntax tree
must be one known to only read. What is asked for by mistake, a join of everything with everything, ends by a limit of
time, of rows, or of the connection's memory.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import duckdb

from analytics.errors import QueryRefusedError, QueryTimeoutError

_READS = "expected one SELECT, WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, PIVOT or EXPLAIN statement"
_EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE\b)?(\s*\([^)]*\))?", re.IGNORECASE)
_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_TABLE_FUNCTIONS = frozenset(
    {
        "range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree", "read_parquet",
        "parquet_scan", "parquet_schema", "parquet_metadata", "parquet_file_metadata", "glob", "degraded_moments",
        "labelled_health", "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_settings",
        "duckdb_tables", "duckdb_types", "duckdb_views",
    }
)  # fmt: skip
# A PIVOT without an IN list cannot be serialised, so its words are checked instead; quoted identifiers are not
# keywords.
_WRITING_KEYWORDS = frozenset(
    {"copy", "insert", "update", "delete", "merge", "into", "create", "drop", "alter", "attach"}
)
_INTERRUPT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """What a statement gave. `cut`: there are more rows than these."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    cut: bool


def run_sql(
    connection: duckdb.DuckDBPyConnection, text: str, *, most_rows: int | None = None, timeout_s: float | None = None
) -> Answer:
    """Run one reading statement on a connection made by `connect`; return at most its first `most_rows` rows.

    Raises `QueryRefusedError` when the text is not exactly one such statement, `QueryTimeoutError` when it is not done
    after `timeout_s`, and `duckdb.Error` when it fails.
    """
    check_reads_only(text)
    with _interrupted_after(connection, timeout_s):
        cursor = connection.execute(text)
        rows = cursor.fetchall() if most_rows is None else cursor.fetchmany(most_rows + 1)
    columns = [column[0] for column in cursor.description or ()]
    return Answer(columns, rows[:most_rows], cut=most_rows is not None and len(rows) > most_rows)


@contextmanager
def _interrupted_after(connection: duckdb.DuckDBPyConnection, timeout_s: float | None) -> Iterator[None]:
    """Interrupt what runs on `connection` within the block after so long, as a QueryTimeoutError."""
    if timeout_s is None:
        yield
        return
    done = Event()

    def interrupt() -> None:
        # Again and again: an interrupt that comes before the statement has begun is forgotten.
        wait_s = timeout_s
        while not done.wait(wait_s):
            connection.interrupt()
            wait_s = _INTERRUPT_EVERY_S

    interrupting = Thread(target=interrupt, name="sql timeout", daemon=True)
    interrupting.start()
    try:
        yield
    except duckdb.InterruptException as error:
        raise QueryTimeoutError(f"the statement was not done after {timeout_s:g} s") from error
    finally:
        done.set()
        interrupting.join()


def check_reads_only(text: str) -> None:
    """Raise `QueryRefusedError` unless `text` is one statement that only reads. Nothing of it is executed."""
    with duckdb.connect(config={"threads": 1}) as parser:
        _check(parser, text)


def _check(parser: duckdb.DuckDBPyConnection, text: str) -> None:
    try:
        statements = parser.extract_statements(text)
    except duckdb.Error as error:
        raise QueryRefusedError(str(error)) from error
    if len(statements) != 1:
        raise QueryRefusedError(f"{_READS}, found {len(statements)} statements")
    match statements[0].type:
        case duckdb.StatementType.SELECT:
            _check_tree(parser, text)
        case duckdb.StatementType.EXPLAIN if (prefix := _EXPLAIN.match(text)) is not None:
            _check(parser, text[prefix.end() :])
        case duckdb.StatementType.MULTI:
            _check_keywords(text)
        case other:
            raise QueryRefusedError(f"{_READS}, found {other.name}")


def _check_tree(parser: duckdb.DuckDBPyConnection, text: str) -> None:
    serialised = parser.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0]
    tree = json.loads(serialised)
    if tree["error"]:
        raise QueryRefusedError(f"{_READS}: {tree['error_message']}")
    for node in _objects(tree):
        kind = node.get("type", "")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _NODES:
            raise QueryRefusedError(f"{_READS}, found a part that writes: {kind.removesuffix('_NODE')}")
        if kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in _TABLE_FUNCTIONS:
                raise QueryRefusedError(
                    f"table function {name!r}: expected one of {', '.join(sorted(_TABLE_FUNCTIONS))}"
                )


def _check_keywords(text: str) -> None:
    tokens = duckdb.tokenize(text)
    words = ["".join(re.findall(r"^\w+", text[start:])).lower() for start, _ in tokens]
    kinds = [kind for _, kind in tokens]
    if not words or words[0] not in ("pivot", "pivot_wider"):
        raise QueryRefusedError(f"{_READS}, found several statements in one")
    for word, kind in zip(words, kinds, strict=True):
        if kind == duckdb.token_type.keyword and word in _WRITING_KEYWORDS:
            raise QueryRefusedError(f"{_READS}, found {word.upper()} in a PIVOT")
        if word.startswith(("json_execute", "query")):
            raise QueryRefusedError(f"{_READS}, found {word} in a PIVOT")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)
