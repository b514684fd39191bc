"""Sliding counts in slots of equal length, for policies that judge by a share of recent requests.

O(1) per observation, memory bounded by the number of slots.
"""

from collections import deque
from math import log

_SMALLEST_S = 1e-4


class _Slot:
    __slots__ = ("failed", "log_sum", "number", "successes", "total")

    def __init__(self, number: int) -> None:
        self.number = number
        self.total = self.failed = self.successes = 0
        self.log_sum = 0.0


class SlidingCount:
    """Requests, failures and the mean log latency of successes over the last `span_s`, in `slots` slots."""

    __slots__ = ("_log_sum", "_slot_s", "_slots", "_spans", "failed", "successes", "total")

    def __init__(self, span_s: float, slots: int = 30) -> None:
        self._slot_s = span_s / slots
        self._spans = slots
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._slots: deque[_Slot] = deque()
        self._log_sum = 0.0
        self.total = self.failed = self.successes = 0

    def advance(self, now: float) -> None:
        """Drop what is older than the span; the counts then hold at `now`."""
        slots = self._slots
        if not slots:
            return
        oldest = int(now / self._slot_s) - self._spans
        while slots and slots[0].number <= oldest:
            gone = slots.popleft()
            self.total -= gone.total
            self.failed -= gone.failed
            self.successes -= gone.successes
            self._log_sum -= gone.log_sum

    def add(self, now: float, *, failed: bool, latency_s: float | None = None) -> None:
        """Count one request; `latency_s` of a success, None when it is not known."""
        self.advance(now)
        slots, number = self._slots, int(now / self._slot_s)
        if not slots or slots[-1].number < number:
            slots.append(_Slot(number))
        slot = slots[-1]
        slot.total += 1
        self.total += 1
        if failed:
            slot.failed += 1
            self.failed += 1
        elif latency_s is not None:
            value = log(max(latency_s, _SMALLEST_S))
            slot.successes += 1
            slot.log_sum += value
            self.successes += 1
            self._log_sum += value

    @property
    def mean_log(self) -> float:
        """Mean log latency of the successes; there must be some."""
        return self._log_sum / self.successes
