"""Worker processes of the simulator are no copies of a process that has threads."""

import threading
from functools import partial

from sim.processes import process_pool

_HELD = threading.Lock()


def _lock_is_free() -> bool:
    return _HELD.acquire(blocking=False)


def test_a_lock_that_another_thread_holds_is_free_in_a_worker() -> None:
    with _HELD, process_pool(1) as pool:
        assert pool.submit(_lock_is_free).result()


_WORDS: list[str] = []


def _take(word: str) -> None:
    _WORDS.append(word)


def _given() -> list[str]:
    return _WORDS


def test_every_worker_is_given_what_it_starts_with() -> None:
    with process_pool(2, partial(_take, "ready")) as pool:
        assert pool.submit(_given).result() == ["ready"]
