"""Which layout each file of the history has, found out before anything is computed from it, and how older ones read.

Rule of this file: a file has exactly the columns that its stream had in the file's layout, in whatever order, with
exactly their types, or it is named in an error. Columns that came later read as their declared defaults. A layout that
this version does not know is refused by its number: to leave out columns whose meaning is unknown would be a guess.

Files that carry no layout are from before layouts had numbers; each may lack any columns that came later.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import duckdb

from analytics.errors import ForeignFileError, NewerLayoutError
from analytics.files import LAYOUT_KEY, from_files, sql_list, sql_text
from analytics.records import FIRST_LAYOUT, LAYOUT, Column, columns_of

Lacking = frozenset[str]
"""Names of columns of today that a file does not have."""

_SCHEMAS = """
SELECT file_name, list(name || ' ' || duckdb_type)
FROM parquet_schema({files})
WHERE duckdb_type IS NOT NULL AND name NOT IN ('list', 'element')
GROUP BY file_name
"""
_LAYOUTS = "SELECT file_name, decode(value) FROM parquet_kv_metadata({files}) WHERE key = CAST({key} AS BLOB)"


def check_files(connection: duckdb.DuckDBPyConnection, stream: str, paths: Sequence[Path]) -> dict[Path, Lacking]:
    """Read the footers of `paths`; return what each of them lacks of today's layout.

    Raises `NewerLayoutError` naming the first file of a later layout, and `ForeignFileError` naming the first that is
    damaged or has other columns than its layout has.
    """
    if not paths:
        return {}
    try:
        found = dict(connection.execute(_SCHEMAS.format(files=sql_list(paths))).fetchall())
        layouts = dict(connection.execute(_LAYOUTS.format(files=sql_list(paths), key=sql_text(LAYOUT_KEY))).fetchall())
    except duckdb.Error as error:
        if len(paths) > 1:
            for path in paths:
                check_files(connection, stream, [path])
        raise ForeignFileError(paths[0], f"expected a Parquet file of stream {stream!r}: {error}") from error
    return {path: _lacking(stream, path, layouts.get(str(path)), found.get(str(path), [])) for path in paths}


def _lacking(stream: str, path: Path, layout: str | None, found: Iterable[str]) -> Lacking:
    if layout is not None and not (layout.isascii() and layout.isdigit()):
        raise ForeignFileError(path, f"expected a layout of history by its number, found {layout!r}")
    number = FIRST_LAYOUT if layout is None else int(layout)
    if number > LAYOUT:
        raise NewerLayoutError(
            path, f"written by a later version: expected history of layout {LAYOUT} or before, found layout {number}"
        )
    has = set(found)
    columns = {_typed(column): column for column in columns_of(stream)}
    due = {name for name, column in columns.items() if column.since <= number}
    missing, strange = due - has, has - columns.keys()
    # Without a number it may have any of the later columns, with one none but those of its layout.
    early = set() if layout is None else (has & columns.keys()) - due
    if different := sorted(missing | strange | early):
        raise ForeignFileError(
            path, f"expected the columns of stream {stream!r} in layout {number}; these differ: {', '.join(different)}"
        )
    return frozenset(column.name for name, column in columns.items() if name not in has)


def _typed(column: Column) -> str:
    return f"{column.name} {column.duckdb_type}"


def rows_of(stream: str, files: Mapping[Path, Lacking]) -> str:
    """A query for the rows of files as `check_files` found them, with all columns of `stream` in their order.

    Without files it has no rows.
    """
    by_lacking: dict[Lacking, list[Path]] = {}
    for path, lacking in files.items():
        by_lacking.setdefault(lacking, []).append(path)
    if not by_lacking:
        return f"SELECT {_select_list(stream, frozenset(c.name for c in columns_of(stream)))} WHERE false"
    # Not DuckDB's own union by name: it would give every late column NULL, and opens every file to plan a query.
    return " UNION ALL ".join(
        f"({from_files(paths)} SELECT {_select_list(stream, lacking)})" for lacking, paths in by_lacking.items()
    )


def _select_list(stream: str, lacking: Lacking) -> str:
    return ", ".join(_expression(column, lacking) for column in columns_of(stream))


def _expression(column: Column, lacking: Lacking) -> str:
    if column.name not in lacking:
        return f'"{column.name}"'
    value = "NULL" if column.default is None else sql_text(column.default)
    return f'CAST({value} AS {column.duckdb_type}) AS "{column.name}"'
