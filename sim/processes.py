"""Worker processes for work that is many runs of one function."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def process_pool(jobs: int, start: Callable[[], object] | None = None) -> ProcessPoolExecutor:
    """Return a pool of `jobs` processes, none of them a fork of this one; each calls `start` before anything else.

    A fork copies this process with its locks but without the threads that hold them, and ours has threads of gRPC,
    DuckDB and OpenMP: the child may wait for ever. The server that forks the workers has no other thread.
    """
    return ProcessPoolExecutor(jobs, get_context("forkserver"), start)
