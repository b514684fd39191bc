"""The asynchronous write path: `put` a record from anywhere, a daemon thread makes it durable.

Rule of this file: history may lag or lose rows, a request may not notice. `put` neither blocks nor raises; memory is
bounded; what is lost is counted. A refusing disk is retried with backoff; a row that no column accepts is rejected
alone, so it cannot hold up the others.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from analytics.records import RECORD_TYPES, Record
from analytics.segments import SegmentWriter

_STREAM_OF = {kind: stream for stream, kind in RECORD_TYPES.items()}
_DISK_ERRORS = (OSError, duckdb.IOException, duckdb.OutOfMemoryException)


@dataclass(frozen=True, slots=True)
class WriterStats:
    """Rows since the start: `written` (durable), `dropped` (oldest beyond the bound), `rejected` (fit no column) and
    `pending` (in memory).
    """

    written: int
    dropped: int
    rejected: int
    pending: int
    last_error: str


class HistoryWriter:
    """Buffers records and flushes them through `segments`, every `flush_s` seconds or `flush_rows` rows, whichever is
    first.

    `max_pending` bounds the rows in memory. After a failure the next try waits 1, 2, 4 ... up to `max_backoff_s`
    seconds, in units of `flush_s`. The writer owns `segments` from here on.
    """

    def __init__(
        self,
        segments: SegmentWriter,
        *,
        flush_s: float = 1.0,
        flush_rows: int = 5_000,
        max_pending: int = 100_000,
        max_backoff_s: float = 30.0,
    ) -> None:
        for name, value in (("flush_s", flush_s), ("flush_rows", flush_rows), ("max_backoff_s", max_backoff_s)):
            if not value > 0:
                raise ValueError(f"{name} = {value!r}: expected a value above 0")
        if max_pending < flush_rows:
            raise ValueError(f"max_pending = {max_pending!r}: expected at least flush_rows ({flush_rows})")
        self._segments = segments
        self._flush_s, self._flush_rows = flush_s, flush_rows
        self._max_pending, self._max_backoff_s = max_pending, max_backoff_s
        self._buffer: deque[Record] = deque()
        self._in_flight = 0
        self._written = self._dropped = self._rejected = 0
        self._last_error = ""
        self._trim_lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="history-writer", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Accept a record; thread-safe, never blocks on the disk, never raises."""
        buffer = self._buffer
        buffer.append(record)
        if len(buffer) >= self._flush_rows:
            self._wake.set()
            if len(buffer) > self._max_pending:
                self._trim()

    def stats(self) -> WriterStats:
        """Counters as they are now."""
        pending = len(self._buffer) + self._in_flight
        return WriterStats(self._written, self._dropped, self._rejected, pending, self._last_error)

    def close(self, timeout_s: float) -> WriterStats:
        """Flush what is pending for at most about `timeout_s` seconds, stop the thread, return the final counters."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_s)
        return self.stats()

    def _trim(self) -> None:
        with self._trim_lock:
            while len(self._buffer) > self._max_pending:
                self._buffer.popleft()
                self._dropped += 1

    def _run(self) -> None:
        backoff_s = 0.0
        while True:
            # While backing off, a full buffer is no reason to hurry; closing is.
            if backoff_s:
                self._closing.wait(backoff_s)
            else:
                self._wake.wait(self._flush_s)
            self._wake.clear()
            closing = self._closing.is_set()
            failed = not self._flush()
            backoff_s = min(max(self._flush_s, 2 * backoff_s), self._max_backoff_s) if failed else 0.0
            if closing and (not self._buffer or time.monotonic() >= self._deadline):
                break
            if closing and failed:
                time.sleep(min(0.05, self._flush_s))  # _closing.wait no longer waits
        self._segments.close()

    def _flush(self) -> bool:
        """Write what is buffered now; False when the disk refused and the rows went back to the buffer."""
        remaining = len(self._buffer)
        while remaining > 0:
            rows = [self._buffer.popleft() for _ in range(min(remaining, self._flush_rows, len(self._buffer)))]
            if not rows:
                break
            remaining -= len(rows)
            self._in_flight = len(rows)
            kept = self._write_by_stream(rows)
            self._buffer.extendleft(reversed(kept))
            self._in_flight = 0
            self._trim()
            if kept:
                return False
        return True

    def _write_by_stream(self, rows: Sequence[Record]) -> list[Record]:
        """Write each stream's share; returns the rows the disk refused, oldest first."""
        groups: dict[str, list[Record]] = {}
        for row in rows:
            stream = _STREAM_OF.get(type(row))
            if stream is None:
                self._reject(f"{type(row).__name__} is no record of history")
            else:
                groups.setdefault(stream, []).append(row)
        kept: list[Record] = []
        for stream, group in groups.items():
            try:
                self._write(stream, group)
            except _DISK_ERRORS as error:
                self._last_error = f"{type(error).__name__}: {error}"
                kept.extend(group)
        return kept

    def _write(self, stream: str, group: list[Record]) -> None:
        """Write a group; on a poisoned row, halve the group until the row stands alone and reject it."""
        while group:
            size = len(group)
            while True:
                try:
                    self._segments.write(stream, group[:size])
                except _DISK_ERRORS:
                    raise
                except Exception as error:  # whatever a row does to the encoder, the thread must live on
                    if size == 1:
                        self._reject(f"{type(error).__name__}: {error}")
                        break
                    size //= 2
                else:
                    self._written += size
                    break
            del group[:size]  # in place: the caller keeps what is left when the disk refuses

    def _reject(self, problem: str) -> None:
        self._rejected += 1
        self._last_error = problem
