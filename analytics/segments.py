"""The synchronous write path: rows in, one durable Parquet file out.

Rule of this file: when `write` returns, the rows are on the disk and visible to every reader; when it raises, none of
them is. NumPy columns go through DuckDB's own `COPY`, which needs no pyarrow and costs a few microseconds a row.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import duckdb

from analytics.columnar import select_list, to_columns
from analytics.errors import HistoryError
from analytics.files import LIVE, AtomicFile, copy_to, make_directory
from analytics.records import RECORD_TYPES, Record

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_GLOB_CHARACTERS = frozenset("*?[")


def absolute_root(root: Path) -> Path:
    """The root of a history as an absolute path.

    Raises `HistoryError` for characters DuckDB would read as a pattern.
    """
    resolved = root.resolve()
    if _GLOB_CHARACTERS & set(str(resolved)):
        raise HistoryError(f"{resolved}: expected a history directory without the characters * ? [ in its path")
    return resolved


class SegmentWriter:
    """Writes segments of one process under `root/live/<replica>-<epoch>/`; not thread-safe.

    `epoch` tells two lives of the same replica apart (a start time in nanoseconds will do); a directory that already
    exists raises `FileExistsError`, so two writers never share their numbers. A disk that refuses the directory now may
    take it later: each write tries again.
    """

    def __init__(self, root: Path, replica: str, epoch: int) -> None:
        if not _NAME.fullmatch(replica):
            raise HistoryError(
                f"replica {replica!r}: expected letters, digits, '.', '_' or '-', not starting with '.' or '-'"
            )
        self._directory = absolute_root(root) / LIVE / f"{replica}-{epoch}"
        self._claimed = False
        try:
            self._claim()
        except FileExistsError:
            raise
        except OSError:
            # Serving must not depend on the disk of the history.
            self._claimed = False
        self._next = dict.fromkeys(RECORD_TYPES, 1)
        self._connection = duckdb.connect(config={"threads": 1})

    def _claim(self) -> None:
        if not self._claimed:
            make_directory(self._directory.parent)
            self._directory.mkdir()
            self._claimed = True

    def write(self, stream: str, records: Sequence[Record]) -> Path:
        """Write records of one stream as one segment and return its path.

        Raises `OSError` or `duckdb.Error` when the disk refuses, `TypeError` or `ValueError` when a
        value does not fit its column. Nothing is visible then, and the sequence number is used again.
        """
        self._claim()
        columns = to_columns(stream, records)
        target = self._directory / stream / f"{self._next[stream]:010d}.parquet"
        with AtomicFile(target) as temporary:
            self._connection.register("batch", columns)
            try:
                self._connection.execute(copy_to(f"FROM batch SELECT {select_list(stream)}", temporary))
            finally:
                self._connection.unregister("batch")
        self._next[stream] += 1
        return target

    def close(self) -> None:
        """Release the DuckDB connection; what was written stays."""
        self._connection.close()
