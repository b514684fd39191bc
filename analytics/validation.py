"""Whether files are what history says they are, found out before anything is computed from them.

Rule of this file: a file has exactly the columns of its stream, in whatever order, with exactly their types, or it is
named in an error. DuckDB alone would take the first file's columns for all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb

from analytics.errors import ForeignFileError
from analytics.files import sql_list
from analytics.records import columns_of

_SCHEMAS = """
SELECT file_name, list(name || ' ' || duckdb_type ORDER BY name)
FROM parquet_schema({files})
WHERE duckdb_type IS NOT NULL AND name NOT IN ('list', 'element')
GROUP BY file_name
"""


def check_files(connection: duckdb.DuckDBPyConnection, stream: str, paths: Sequence[Path]) -> None:
    """Read the footers of `paths`.

    Raises `ForeignFileError` naming the first file that is damaged or has other columns.
    """
    if not paths:
        return
    try:
        found = dict(connection.execute(_SCHEMAS.format(files=sql_list(paths))).fetchall())
    except duckdb.Error as error:
        if len(paths) > 1:
            for path in paths:
                check_files(connection, stream, [path])
        raise ForeignFileError(paths[0], f"expected a Parquet file of stream {stream!r}: {error}") from error
    expected = sorted(f"{column.name} {column.duckdb_type}" for column in columns_of(stream))
    for path in paths:
        columns = found.get(str(path), [])
        if columns != expected:
            different = sorted(set(columns) ^ set(expected))
            raise ForeignFileError(
                path, f"expected the columns of stream {stream!r}; these differ: {', '.join(different)}"
            )
