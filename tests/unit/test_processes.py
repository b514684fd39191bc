"""Worker processes of the simulator are no copies of a process that has threads, and what they raise comes back."""

import pickle
import pkgutil
import threading
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest

import analytics
import routing
import scoring
import sim
from analytics.errors import NewerLayoutError
from routing.errors import PolicyError, RequestError, UnknownEndpointError, UnknownModelError
from scoring.artifact import ArtifactError, load
from sim.decode import FieldError, ScenarioError
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


ERRORS = (
    PolicyError("ejection_s", -1.0, "more than 0"),
    RequestError("draw", 2.0, "a fraction"),
    UnknownModelError("gpt-9", ["gpt-4", "gpt-5"]),
    UnknownEndpointError("nowhere"),
    ArtifactError(Path("models/7/manifest.json"), "not a manifest"),
    NewerLayoutError(Path("live/r1-1/health/0000000001.parquet"), "expected layout 1, found 2"),
    FieldError("for_s", "expected seconds above 0"),
    ScenarioError("faults[2].for_s", "is required"),
)
# Raised and caught by one server, which has no workers.
NEVER_SENT = frozenset({"sim.wire.WireError"})


def test_what_a_worker_raises_comes_back_as_itself(tmp_path: Path) -> None:
    with process_pool(1) as pool, pytest.raises(ArtifactError, match=r"manifest\.json: cannot be read: No such file"):
        pool.submit(load, tmp_path).result()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error: Exception) -> None:
    found = pickle.loads(pickle.dumps(error))  # noqa: S301 - it was dumped here
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def _errors(of: type[Exception]) -> set[type[Exception]]:
    return {of}.union(*(_errors(kind) for kind in of.__subclasses__()))


def test_every_error_that_takes_more_than_a_text_is_among_them() -> None:
    packages = (analytics, routing, scoring, sim)
    for package in packages:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                import_module(module.name)
    names = {package.__name__ for package in packages}
    own = {kind for kind in _errors(Exception) if kind.__module__.split(".")[0] in names}
    shaped = {f"{kind.__module__}.{kind.__name__}" for kind in own if "__init__" in vars(kind)}
    sent = {f"{kind.__module__}.{kind.__name__}" for error in ERRORS for kind in type(error).__mro__}
    assert shaped - sent == NEVER_SENT
