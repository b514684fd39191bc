"""Quantiles over the last minutes in bounded memory: log-spaced buckets in rotating slots.

The buckets are those of DDSketch (Masson, Rim, Lee: "DDSketch", VLDB 2019) with a fixed range: a quantile is off by
at most the relative accuracy. Slots of equal length rotate, so that old values leave without being stored one by one.
"""

from array import array
from math import ceil, log

_ACCURACY = 0.05
_GAMMA = (1 + _ACCURACY) / (1 - _ACCURACY)
_LOG_GAMMA = log(_GAMMA)
_SMALLEST_S = 0.001
_BUCKETS = ceil(log(600.0 / _SMALLEST_S) / _LOG_GAMMA) + 1


class QuantileSketch:
    """Quantiles of positive durations in seconds, 1 ms to 600 s, within 5 %, over `slots × slot_s` seconds. Reads do
    not mutate.
    """

    __slots__ = ("_counts", "_newest", "_slot_s", "_slots")

    def __init__(self, slots: int = 5, slot_s: float = 60.0) -> None:
        self._slots = slots
        self._slot_s = slot_s
        self._counts = array("I", bytes(4 * slots * _BUCKETS))
        self._newest = -1

    def add(self, value_s: float, now: float) -> None:
        """Count one value at time `now`. A time before the newest slot counts in the newest."""
        slot = int(now / self._slot_s)
        if slot > self._newest:
            for stale in range(max(self._newest + 1, slot - self._slots + 1), slot + 1):
                start = (stale % self._slots) * _BUCKETS
                self._counts[start : start + _BUCKETS] = array("I", bytes(4 * _BUCKETS))
            self._newest = slot
        bucket = ceil(log(value_s / _SMALLEST_S) / _LOG_GAMMA) if value_s > _SMALLEST_S else 0
        self._counts[(self._newest % self._slots) * _BUCKETS + min(bucket, _BUCKETS - 1)] += 1

    def quantile(self, fraction: float, now: float) -> float | None:
        """Return the quantile in seconds over the slots still within the span at `now`, or None without values."""
        slot = int(now / self._slot_s)
        merged = [0] * _BUCKETS
        for live in range(max(0, slot - self._slots + 1), self._newest + 1):
            start = (live % self._slots) * _BUCKETS
            for bucket, count in enumerate(self._counts[start : start + _BUCKETS]):
                if count:
                    merged[bucket] += count
        total = sum(merged)
        if not total:
            return None
        rank = fraction * (total - 1)
        seen = 0
        for bucket, count in enumerate(merged):
            seen += count
            if seen > rank:
                return _SMALLEST_S * 2 * _GAMMA**bucket / (1 + _GAMMA)
        raise AssertionError("unreachable: the rank lies within the total")
