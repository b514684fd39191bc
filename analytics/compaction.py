"""Turns many small segments into few sorted parts, while writers write and readers read.

Rule of this file: killed at any instruction, nothing is lost and nothing is counted twice. New parts become real only
when the manifest naming them replaces the old one, and that same manifest covers the segments they came from; until
then they are orphans that the next run removes. Files go only after a grace period, so a reader that looked earlier
still finds them. Segments of earlier layouts come out in today's; those of a later one are left to whoever knows it.

Parts of a day are merged by size (as in a log-structured merge tree: O'Neil et al., 1996): a new part absorbs those
at most `_MERGE_RATIO` times its own rows, so a day holds O(log rows) parts and each row is rewritten O(log rows)
times.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb

from analytics.errors import ForeignFileError, NewerLayoutError
from analytics.files import (
    DATA,
    LIVE,
    TMP_SUFFIX,
    AtomicFile,
    copy_to,
    from_files,
    live_segments,
    make_directory,
    sql_text,
)
from analytics.layouts import Lacking, check_files, rows_of
from analytics.manifest import Manifest, Mark, Part, Retired, read_manifest, write_manifest
from analytics.records import RECORD_TYPES
from analytics.segments import absolute_root

_LOCK = "compactor.lock"
_QUARANTINE = "quarantine"
_MERGE_RATIO = 2


@dataclass(frozen=True, slots=True)
class CompactionReport:
    """What one run did. `ran` is False when another compactor of this machine held the lock. `newer`: segments of a
    later layout, which were left where they are.
    """

    ran: bool
    segments: int = 0
    rows: int = 0
    parts: int = 0
    removed: int = 0
    quarantined: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()


class _Segment(NamedTuple):
    writer: str
    seq: int
    path: Path


class Compactor:
    """Compacts one history directory; one instance per machine does the work at a time.

    `grace_s`: how long a reader may use files it has seen. `retention_s`: parts whose newest row is older go; None
    keeps all. `max_segments`: segments of one stream taken in one run, which bounds its memory and time.
    """

    def __init__(
        self,
        root: Path,
        *,
        grace_s: float = 300.0,
        retention_s: float | None = None,
        max_segments: int = 2_000,
        memory_limit: str = "512MB",
    ) -> None:
        self._root = absolute_root(root)
        self._grace_s = grace_s
        self._retention_s = retention_s
        self._max_segments = max_segments
        self._memory_limit = memory_limit

    def run_once(self, now: float) -> CompactionReport:
        """Compact what there is at `now` (unix seconds).

        Raises `OSError` or `duckdb.Error` when the disk refuses and `ForeignFileError` for a manifest or part that is
        damaged or of a later version; the history is as it was then. Damaged segments are set aside under `quarantine/`
        and reported.
        """
        make_directory(self._root)
        with self._lock() as locked:
            if not locked:
                return CompactionReport(ran=False)
            with duckdb.connect(config={"threads": 1, "memory_limit": self._memory_limit}) as connection:
                return _Run(self._root, connection, read_manifest(self._root), now).execute(
                    self._grace_s, self._retention_s, self._max_segments
                )

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        handle = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(handle)


class _Run:
    """One run under the lock: old manifest in, new files out, new manifest last."""

    def __init__(self, root: Path, connection: duckdb.DuckDBPyConnection, manifest: Manifest, now: float) -> None:
        self._root, self._connection, self._old, self._now = root, connection, manifest, now
        self._parts = {stream: list(parts) for stream, parts in manifest.parts.items()}
        self._marks = dict(manifest.marks)
        self._retired = list(manifest.retired)
        self._quarantined: list[str] = []
        self._newer: list[str] = []
        self._segments = self._rows = self._new_parts = 0

    def execute(self, grace_s: float, retention_s: float | None, max_segments: int) -> CompactionReport:
        self._remove_orphans()
        live = live_segments(self._root)
        removed = self._remove_retired(grace_s)
        self._prune_marks({f"{writer}/{stream}" for writer, stream in live}, grace_s)
        self._remove_abandoned(grace_s)
        for stream in RECORD_TYPES:
            segments = [
                _Segment(writer, seq, path)
                for (writer, of), found in live.items()
                for seq, path in found
                if of == stream and not self._old.covers(writer, stream, seq)
            ]
            self._compact(stream, segments[:max_segments])
        if retention_s is not None:
            self._expire(self._now - retention_s)
        manifest = Manifest(
            parts={stream: tuple(parts) for stream, parts in self._parts.items()},
            marks=self._marks,
            retired=tuple(self._retired),
        )
        if manifest != self._old:
            write_manifest(self._root, manifest)
        return CompactionReport(
            True, self._segments, self._rows, self._new_parts, removed, tuple(self._quarantined), tuple(self._newer)
        )

    def _compact(self, stream: str, segments: Sequence[_Segment]) -> None:
        known, readable = self._sorted_out(stream, segments)
        for day, rows in self._days(stream, readable):
            self._write_part(stream, day, rows, readable)
        for segment in known:
            mark = self._marks.get(f"{segment.writer}/{stream}")
            self._marks[f"{segment.writer}/{stream}"] = Mark(max(segment.seq, mark.seq if mark else 0), self._now)
        self._retire(readable)
        self._segments += len(readable)

    def _days(self, stream: str, files: Mapping[Path, Lacking]) -> list[tuple[str, int]]:
        return self._connection.execute(
            f"FROM ({rows_of(stream, files)}) "
            "SELECT strftime(time, '%Y-%m-%d') AS day, count(*) GROUP BY day ORDER BY day"
        ).fetchall()

    def _write_part(self, stream: str, day: str, rows: int, segments: Mapping[Path, Lacking]) -> None:
        absorbed, total = self._absorb(stream, day, rows)
        parts = check_files(self._connection, stream, [self._root / part.path for part in absorbed])
        sources = {**parts, **segments}
        number = 1 + max(
            (int(Path(part.path).stem.rsplit("-", 1)[1]) for part in self._on_disk(stream, day)), default=0
        )
        target = self._root / DATA / stream / f"day={day}" / f"part-{number:08d}.parquet"
        with AtomicFile(target) as temporary:
            of_day = f"WHERE strftime(time, '%Y-%m-%d') = {sql_text(day)} ORDER BY time"
            self._connection.execute(copy_to(f"FROM ({rows_of(stream, sources)}) {of_day}", temporary))
            written, first, last = self._connection.execute(
                f"{from_files([temporary])} SELECT count(*), epoch(min(time)), epoch(max(time))"
            ).fetchall()[0]
        if written != total:
            raise ForeignFileError(target, f"expected {total} rows from {len(sources)} files, found {written}")
        kept = [part for part in self._parts.get(stream, []) if part not in absorbed]
        self._parts[stream] = [*kept, Part(str(target.relative_to(self._root)), written, first, last)]
        self._retire(self._root / part.path for part in absorbed)
        self._rows += rows
        self._new_parts += 1

    def _absorb(self, stream: str, day: str, rows: int) -> tuple[list[Part], int]:
        of_day = sorted(
            (part for part in self._parts.get(stream, []) if f"/day={day}/" in part.path), key=lambda p: p.rows
        )
        absorbed: list[Part] = []
        total = rows
        for part in of_day:
            if part.rows > _MERGE_RATIO * total:
                break
            absorbed.append(part)
            total += part.rows
        return absorbed, total

    def _on_disk(self, stream: str, day: str) -> list[Retired | Part]:
        """Parts of that day whose names are taken: current ones, and retired ones a reader may still use."""
        prefix = f"{DATA}/{stream}/day={day}/"
        known: list[Retired | Part] = [*self._parts.get(stream, []), *self._retired]
        return [entry for entry in known if entry.path.startswith(prefix)]

    def _sorted_out(self, stream: str, segments: Sequence[_Segment]) -> tuple[list[_Segment], dict[Path, Lacking]]:
        """The segments this run may deal with, and those of them that hold rows of `stream`.

        The others of these are set aside, so that they cannot stop every later run. A mark covers everything before it:
        a writer's segments from the first of a later layout on are not for this run.
        """
        known, aside = list(segments), set[Path]()
        while True:
            try:
                own = [segment.path for segment in known if segment.path not in aside]
                return known, check_files(self._connection, stream, own)
            except NewerLayoutError as error:
                newer = next(segment for segment in known if segment.path == error.path)
                known = [one for one in known if one.writer != newer.writer or one.seq < newer.seq]
                self._newer.append(str(error))
            except ForeignFileError as error:
                self._set_aside(error.path)
                aside.add(error.path)
                self._quarantined.append(str(error))

    def _set_aside(self, path: Path) -> None:
        target = self._root / _QUARANTINE / "-".join(path.relative_to(self._root / LIVE).parts)
        make_directory(target.parent)
        path.rename(target)

    def _retire(self, paths: Iterable[Path]) -> None:
        self._retired.extend(Retired(str(path.relative_to(self._root)), self._now) for path in paths)

    def _expire(self, oldest: float) -> None:
        for stream, parts in self._parts.items():
            expired = [part for part in parts if part.max_time < oldest]
            self._parts[stream] = [part for part in parts if part not in expired]
            self._retire(self._root / part.path for part in expired)

    def _remove_orphans(self) -> None:
        """Remove what a killed run left: files under data/ that the manifest does not know."""
        known = {part.path for parts in self._old.parts.values() for part in parts} | {
            gone.path for gone in self._old.retired
        }
        for path in (self._root / DATA).glob("*/day=*/*"):
            if str(path.relative_to(self._root)) not in known:
                path.unlink()

    def _remove_retired(self, grace_s: float) -> int:
        due = [gone for gone in self._retired if gone.at <= self._now - grace_s]
        self._retired = [gone for gone in self._retired if gone.at > self._now - grace_s]
        for gone in due:
            path = self._root / gone.path
            path.unlink(missing_ok=True)
            if gone.path.startswith(f"{LIVE}/"):
                key = "/".join(path.relative_to(self._root / LIVE).parts[:2])
                if key in self._marks:
                    self._marks[key] = Mark(self._marks[key].seq, self._now)
            else:
                with suppress(OSError):  # the day still has other parts
                    path.parent.rmdir()
        return len(due)

    def _prune_marks(self, present: set[str], grace_s: float) -> None:
        # A mark must outlive its segments by the grace period: a reader may have listed them just before they went.
        for key, mark in list(self._marks.items()):
            if key not in present and mark.at <= self._now - grace_s:
                del self._marks[key]

    def _remove_abandoned(self, grace_s: float) -> None:
        """Remove temporary files of dead writers, and the directories of writers that have nothing left."""
        for path in (self._root / LIVE).glob(f"*/*/*{TMP_SUFFIX}"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < self._now - grace_s:
                    path.unlink()
        for directory in [*(self._root / LIVE).glob("*/*/"), *(self._root / LIVE).glob("*/")]:
            with suppress(OSError):  # not empty, or just in use: writers make their directories again
                if directory.stat().st_mtime < self._now - grace_s:
                    directory.rmdir()
