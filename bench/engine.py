"""What the pure engine costs: a decision among 12 candidates, an observation with windows and machine, an ejection, a
tick.

The reference is hashing 1 KiB with SHA-256: it scales with the processor as our Python does, roughly.
"""

import tracemalloc
from hashlib import sha256

from bench.figure import Figure, cpu_us
from routing.actions import Finished
from routing.engine import Engine
from routing.health import State
from routing.model import Capability, Catalogue, Endpoint, RouteRequest
from routing.outcomes import Outcome
from routing.pipeline import decide
from routing.policy import Policy
from routing.window import Window

_CANDIDATES = 12
_START = 1e9
_KIB = bytes(1024)
_CHAT = frozenset({Capability.CHAT})


def _engine() -> Engine:
    endpoints = [
        Endpoint(f"p{i}:m", f"p{i}", "region", "zone", "m", "m", order=i, capabilities=_CHAT)
        for i in range(_CANDIDATES)
    ]
    return Engine(Catalogue.of(endpoints), Policy(), _START)


class _Stream:
    """Streams on one endpoint, 10 ms apart."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = _START

    def observe(self, outcome: Outcome = Outcome.OK) -> None:
        self.now += 0.01
        self._engine.started("p0:m", "attempt", self.now)
        self._engine.first_byte("p0:m", "attempt", self.now)
        ended = Finished("p0:m", "attempt", outcome, ttft_s=0.1, output_tokens=100, generation_s=2.0)
        self._engine.finished(ended, self.now)


def _ejection() -> float:
    """Return the cost of the very failure that ejects, found by repeating what led to it."""
    failures = 0
    while True:
        engine = _engine()
        stream = _Stream(engine)
        stream.observe()
        for _ in range(failures):
            stream.observe(Outcome.SERVER_ERROR)
        cost = _cost_of_one(stream)
        if engine.health_of("p0:m").state is State.EJECTED:
            return cost
        failures += 1


def _cost_of_one(stream: "_Stream") -> float:
    return cpu_us(lambda: stream.observe(Outcome.SERVER_ERROR), calls=1, rounds=1)


def run() -> list[Figure]:
    """Measure the engine."""
    reference = cpu_us(lambda: sha256(_KIB).digest(), 20_000)
    engine = _engine()
    stream = _Stream(engine)
    request = RouteRequest("m", needs=_CHAT)
    stream.observe()
    tracemalloc.start()
    window = Window()
    window.started("attempt", _START)
    memory_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    costs = {
        f"decision, {_CANDIDATES} candidates": cpu_us(lambda: decide(engine.snapshot, request, stream.now, 0.3), 5_000),
        "observation (start, first byte and end of a stream)": cpu_us(stream.observe, 5_000),
        "ejecting observation, snapshot patched": sorted(_ejection() for _ in range(9))[4],
        f"tick, {_CANDIDATES} endpoints": cpu_us(lambda: engine.tick(stream.now), 100),
    }
    against = "SHA-256 of 1 KiB"
    return [
        Figure(against, reference),
        *(Figure(what, cost, cost / reference, against) for what, cost in costs.items()),
        Figure("memory of one window, KiB", memory_bytes / 1024),
    ]
