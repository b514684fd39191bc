"""How a file of the history comes into being, and where it lives.

Rule of this file: a name without the `.tmp` ending is complete and durable. A file is written under its temporary
name, flushed to the disk, renamed, and the directory is flushed too; whoever is killed in between leaves at most a
`.tmp` nobody reads.

    root/live/<replica>-<epoch>/<stream>/<seq>.parquet       segments, each written by one process
    root/data/<stream>/day=<YYYY-MM-DD>/part-<...>.parquet   compacted, sorted by time
    root/manifest.json                                       which parts count, and which segments they cover
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from analytics.records import LAYOUT

TMP_SUFFIX = ".tmp"
LAYOUT_KEY = "routecast_layout"
LIVE = "live"
DATA = "data"
MANIFEST = "manifest.json"


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path) -> None:
    """Create a directory with its parents, each of them durable. Costs one `stat` when it is already there."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


class AtomicFile:
    """Context manager: yields a temporary path to write to; publishes it as `target` on success, removes it on failure.

    Raises `OSError` from any of the steps; then `target` is as it was before.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(target.name + TMP_SUFFIX)

    def __enter__(self) -> Path:
        make_directory(self._target.parent)
        return self._temporary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                handle = os.open(self._temporary, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
                self._temporary.rename(self._target)
                # From here on the file is visible. An error now would make the caller write its rows a second time.
                with suppress(OSError):
                    sync_directory(self._target.parent)
        finally:
            with suppress(OSError):  # gone after a success; after a failure the disk may refuse even this
                self._temporary.unlink(missing_ok=True)


def live_segments(root: Path) -> dict[tuple[str, str], list[tuple[int, Path]]]:
    """All live segments by (writer, stream), each as (sequence number, path) in order of number.

    Entries that do not look like segments (`.tmp` files, strangers) are left out.
    """
    found: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for writer in _entries(root / LIVE):
        for stream in _entries(writer):
            segments = [(int(path.stem), path) for path in _entries(stream) if _is_segment(path)]
            if segments:
                found[writer.name, stream.name] = sorted(segments)
    return found


def from_files(paths: Iterable[Path]) -> str:
    """A FROM clause over Parquet files. The `day=` directories are for people: no column is made of them."""
    return f"FROM read_parquet({sql_list(paths)}, hive_partitioning = false)"


def copy_to(query: str, target: Path) -> str:
    """The statement that writes the rows of a query as one Parquet file of today's layout, straight to `target`."""
    metadata = f"KV_METADATA {{{LAYOUT_KEY}: '{LAYOUT}'}}"
    return f"COPY ({query}) TO {sql_text(target)} (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false, {metadata})"


def sql_list(paths: Iterable[Path]) -> str:
    """The paths as a DuckDB list literal, for places that take no parameter."""
    return "[" + ", ".join(sql_text(path) for path in paths) + "]"


def sql_text(value: Path | str) -> str:
    """The value as a DuckDB string literal."""
    return "'" + str(value).replace("'", "''") + "'"


def _is_segment(path: Path) -> bool:
    return path.suffix == ".parquet" and path.stem.isascii() and path.stem.isdigit()


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
