"""One measured figure, and how processor time is measured."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

_OF_A_PROCESS = 2  # Linux numbers the CPU clock of a process by its id; /proc counts in steps of 10 ms


@dataclass(frozen=True, slots=True)
class Figure:
    """µs of one operation (CPU, unless `what` says elapsed), and its ratio to another measured in the same run (None
    for the reference itself).
    """

    what: str
    us: float
    ratio: float | None = None
    against: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the figure for JSON."""
        return asdict(self)


def cpu_us(operation: Callable[[], object], calls: int, rounds: int = 5) -> float:
    """Return the median CPU µs per call over `rounds` rounds of `calls` calls each."""
    costs = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(calls):
            operation()
        costs.append((time.process_time() - start) / calls * 1e6)
    return median(costs)


def process_cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used so far, user and system together, all of its threads."""
    return time.clock_gettime(~pid << 3 | _OF_A_PROCESS)
