"""History as one DuckDB view per stream over whatever files there are.

Rule of this file: list the live segments first, read the manifest second, make the views last. In that order a
segment that is compacted meanwhile is either seen live or seen inside a part, never both and never neither. The
database itself is in memory and its configuration is locked: it can read below the history directory and nowhere
else.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import duckdb

from analytics.errors import ForeignFileError
from analytics.files import live_segments, sql_text
from analytics.layouts import Lacking, check_files, rows_of
from analytics.manifest import read_manifest
from analytics.records import FAILURE_OUTCOMES, RECORD_TYPES
from analytics.segments import absolute_root


def connect(root: Path, *, threads: int = 2, memory_limit: str = "1GB") -> duckdb.DuckDBPyConnection:
    """A connection whose views, one per stream of `analytics.records`, show the history under `root`.

    A missing directory is an empty history. `time` is a UTC `TIMESTAMP`. Files of earlier layouts have the columns of
    today, with their defaults. Raises `ForeignFileError` for files that are none of ours, or of a later version. The
    views show what was there; call `refresh` for what came since.
    """
    root = absolute_root(root)
    connection = duckdb.connect(config={"threads": threads, "memory_limit": memory_limit, "temp_directory": ""})
    connection.execute("CREATE TABLE history_files (path VARCHAR, stream VARCHAR, lacking VARCHAR[])")
    refresh(connection, root)
    for statement in (
        "SET autoinstall_known_extensions = false",
        "SET autoload_known_extensions = false",
        f"SET allowed_directories = [{sql_text(f'{root}/')}]",
        "SET enable_external_access = false",
        "SET lock_configuration = true",
    ):
        connection.execute(statement)
    return connection


def refresh(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Point the views at the files of this moment.

    Call it at least once per grace period of the compactor, best before each query: older files may be gone. Only
    files that are new since the last call are checked. Raises `ForeignFileError`; the views are as before then.
    """
    root = absolute_root(root)
    live = live_segments(root)
    manifest = read_manifest(root)
    files: dict[str, list[Path]] = {
        stream: [root / part.path for part in manifest.parts.get(stream, ())] for stream in RECORD_TYPES
    }
    for (writer, stream), segments in live.items():
        if stream not in files:
            raise ForeignFileError(
                segments[0][1], f"expected one of the streams {', '.join(RECORD_TYPES)}, found {stream!r}"
            )
        files[stream].extend(path for seq, path in segments if not manifest.covers(writer, stream, seq))
    known = {
        Path(path): frozenset(lacking)
        for path, lacking in connection.execute("SELECT path, lacking FROM history_files").fetchall()
    }
    checked: dict[str, dict[Path, Lacking]] = {}
    for stream, paths in files.items():
        found = known | check_files(connection, stream, [path for path in paths if path not in known])
        checked[stream] = {path: found[path] for path in paths}
    for stream, own in checked.items():
        connection.execute(f"CREATE OR REPLACE VIEW {stream} AS {rows_of(stream, own)}")
    _remember(connection, checked)
    connection.execute(_macros())


def _remember(connection: duckdb.DuckDBPyConnection, checked: Mapping[str, Mapping[Path, Lacking]]) -> None:
    connection.execute("DELETE FROM history_files")
    for stream, files in checked.items():
        connection.execute(
            "INSERT INTO history_files SELECT unnest(?::VARCHAR[]), ?, unnest(?::VARCHAR[][])",
            [[str(path) for path in files], stream, [sorted(lacking) for lacking in files.values()]],
        )


def _macros() -> str:
    outcomes = ", ".join(sql_text(outcome) for outcome in FAILURE_OUTCOMES)
    text = resources.files("analytics").joinpath("sql", "macros.sql").read_text(encoding="utf-8")
    return text.replace("{failure_outcomes}", outcomes)
