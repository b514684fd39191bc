"""Quantiles over the last minutes in bounded memory: log-spaced buckets in rotating slots.

The buckets are those of DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019) with a fixed range: a quantile is off by
at most the relative accuracy. Slots of equal length rotate, so that old values leave without being stored one by one.
"""

from array import array
from bisect import bisect_right
from itertools import accumulate
from math import ceil, log

_ACCURACY = 0.05
_GAMMA = (1 + _ACCURACY) / (1 - _ACCURACY)
_LOG_GAMMA = log(_GAMMA)
_SMALLEST_S = 0.001
_LOG_SMALLEST = log(_SMALLEST_S)
_BUCKETS = ceil(log(600.0 / _SMALLEST_S) / _LOG_GAMMA) + 1


class QuantileSketch:
    """Quantiles of positive durations in seconds, 1 ms to 600 s, within 5 %, over `slots` × `slot_s` seconds.

    What was read is remembered until a value comes or a slot ends; no read changes an answer.
    """

    __slots__ = ("_known", "_known_slot", "_merged", "_newest", "_slot_s", "_slots")

    def __init__(self, slots: int = 5, slot_s: float = 60.0) -> None:
        self._slots = [_empty() for _ in range(slots)]
        self._slot_s = slot_s
        self._merged = _empty()
        self._newest = -1
        self._known: dict[float, float | None] = {}
        self._known_slot = -1

    def add(self, value_s: float, now: float) -> None:
        """Count one value at time `now`. A time before the newest slot counts in the newest."""
        self.add_log(log(value_s), now)

    def add_log(self, value: float, now: float) -> None:
        """Count one value, given by its natural logarithm."""
        slot = int(now / self._slot_s)
        if slot > self._newest:
            for stale in range(max(self._newest + 1, slot - len(self._slots) + 1), slot + 1):
                self._slots[stale % len(self._slots)] = _empty()
            self._newest = slot
            self._merged = self._sum(slot)
        bucket = min(ceil((value - _LOG_SMALLEST) / _LOG_GAMMA), _BUCKETS - 1) if value > _LOG_SMALLEST else 0
        self._slots[self._newest % len(self._slots)][bucket] += 1
        self._merged[bucket] += 1
        if self._known:
            self._known.clear()

    def _sum(self, slot: int) -> "array[int]":
        """Add up the slots that are still within the span when `slot` is the current one."""
        live = [self._slots[s % len(self._slots)] for s in range(max(0, slot - len(self._slots) + 1), self._newest + 1)]
        return array("I", map(sum, zip(*live, strict=True))) if live else _empty()

    def quantile(self, fraction: float, now: float) -> float | None:
        """Return the quantile in seconds over the slots still within the span at `now`, or None without values."""
        slot = max(int(now / self._slot_s), self._newest)
        if slot != self._known_slot:
            self._known.clear()
            self._known_slot = slot
        if fraction not in self._known:
            self._known[fraction] = self._read(fraction, slot)
        return self._known[fraction]

    def _read(self, fraction: float, slot: int) -> float | None:
        running = list(accumulate(self._merged if slot == self._newest else self._sum(slot)))
        if not running[-1]:
            return None
        bucket = bisect_right(running, fraction * (running[-1] - 1))
        return _SMALLEST_S * 2 * _GAMMA**bucket / (1 + _GAMMA)


def _empty() -> "array[int]":
    return array("I", bytes(4 * _BUCKETS))
