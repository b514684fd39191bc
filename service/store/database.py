"""One SQLite file for what must survive this process, read and written by one thread.

Rule of this file: a job whose result has been handed back is on the disk, whole; one that failed left nothing. Jobs
that arrive while a commit is under way share the next one (group commit: DeWitt et al., SIGMOD 1984), so the price of
a flush is shared, and the event loop never waits for the disk.

A job may be run twice, when a neighbour in its batch fails: it touches its connection and nothing else.
"""

import asyncio
import errno
import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

from service.store.errors import StoreError, StoreUnusableError

log = logging.getLogger(__name__)

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

_VERSION = 1
_MOST_IN_BATCH = 256
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


@dataclass(frozen=True, slots=True)
class _Pending:
    job: Job[Any]
    future: "asyncio.Future[Any]"


class Database:
    """The file at `path` with the tables of `schema` (statements that may be run again).

    `sync` "full" survives a loss of power, "normal" the death of the process. Construct it on the event loop it serves.
    """

    def __init__(self, path: Path, schema: Sequence[str], *, sync: Literal["full", "normal"] = "full") -> None:
        self._path = path
        self._schema = tuple(schema)
        self._sync = sync
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[_Pending | None] = SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="state-store", daemon=True)

    async def start(self) -> None:
        """Open the file. A disk that is full now may take it later: each job tries again.

        Raises StoreUnusableError, which is an OSError.
        """
        self._thread.start()
        try:
            await self.run(lambda _: None)
        except StoreUnusableError:
            raise
        except StoreError as error:
            log.error("%s cannot be opened yet: %s", self._path, error)  # noqa: TRY400  # a full disk is no bug

    async def run(self, job: Job[T]) -> T:
        """Run a job in a transaction; return its result once it is durable.

        Raises StoreError when the disk refuses or the store is closed, and whatever the job raises. The job is run even
        when its caller stops waiting for it.
        """
        if self._closed:
            raise StoreError("the state store is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Pending(job, future))
        return await asyncio.shield(future)

    async def aclose(self) -> None:
        """Finish the jobs that were given, and let go of the file. Closing again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _serve(self) -> None:
        open_for_jobs = True
        while open_for_jobs:
            batch = [self._jobs.get()]
            with suppress(Empty):
                while batch[-1] is not None and len(batch) < _MOST_IN_BATCH:
                    batch.append(self._jobs.get_nowait())
            if batch[-1] is None:
                open_for_jobs = False
            if given := [pending for pending in batch if pending is not None]:
                self._commit(given)
        self._close()

    def _commit(self, batch: Sequence[_Pending]) -> None:
        try:
            results = self._transaction([pending.job for pending in batch])
        except Exception as error:
            if len(batch) > 1:
                # Whoever failed fails alone.
                for pending in batch:
                    self._commit([pending])
            else:
                self._hand_back(batch, [_as_store_error(error)])
        else:
            self._hand_back(batch, results)

    def _transaction(self, jobs: Sequence[Job[Any]]) -> list[Any]:
        connection = self._connection or self._open()
        connection.execute("BEGIN IMMEDIATE")
        try:
            results = [job(connection) for job in jobs]
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # some errors have rolled back already
                connection.execute("ROLLBACK")
            raise
        return results

    def _hand_back(self, batch: Sequence[_Pending], results: Sequence[Any]) -> None:
        def settle() -> None:
            for pending, result in zip(batch, results, strict=True):
                if pending.future.cancelled():
                    continue
                if isinstance(result, Exception):
                    pending.future.set_exception(result)
                    pending.future.exception()  # whoever stopped waiting does not want to hear of it
                else:
                    pending.future.set_result(result)

        with suppress(RuntimeError):  # the loop is gone, and everybody who waited with it
            self._loop.call_soon_threadsafe(settle)

    def _open(self) -> sqlite3.Connection:
        # Conversations are nobody else's business. What SQLite puts beside its file has the file's permissions.
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._lock is None:
            self._lock = _locked(self._path.with_suffix(".lock"))
        self._path.touch(mode=0o600)
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._sync}")
            connection.execute("PRAGMA foreign_keys = ON")
            self._check_version(connection)
            connection.execute("BEGIN IMMEDIATE")
            for statement in self._schema:
                connection.execute(statement)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _check_version(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, _VERSION):
            raise StoreUnusableError(f"{self._path}: expected version {_VERSION}, found {version}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        if self._lock is not None:
            os.close(self._lock)


def _locked(path: Path) -> int:
    """Return a handle that holds the lock until it is closed. Raises StoreUnusableError when another process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StoreUnusableError(
            f"{path}: in use by another process; replicas that share a data_dir need different names"
        ) from None
    return handle


def _as_store_error(error: Exception) -> Exception:
    """Return the error as callers of `run` know it; a mistake of the job's own stays what it is."""
    match error:
        case StoreError():
            return error
        case sqlite3.Error() if getattr(error, "sqlite_errorcode", None) in _DAMAGED:
            return StoreUnusableError(f"the state store is damaged ({error}); move its file away to start afresh")
        case sqlite3.Error():
            return StoreError(f"{type(error).__name__}: {error}")
        case OSError(errno=errno.ENOSPC):
            return StoreError(str(error))
        case OSError():
            return StoreUnusableError(str(error))
        case _:
            return error
