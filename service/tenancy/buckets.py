"""A token bucket: what it holds grows with time up to its capacity (J. Turner, "New Directions in Communications", IEEE
Communications Magazine 24(10), 1986). What is taken ahead of its use may be given back, or turn out to be too little.
"""

from math import inf


class TokenBucket:
    """Full at first, it refills within a minute. Times are seconds on any steady clock.

    Debt is allowed: who used more than was taken waits until that is paid off.
    """

    __slots__ = ("_at", "_held", "_per_s", "capacity")

    def __init__(self, per_min: float, now: float) -> None:
        self.capacity = per_min
        self._per_s = per_min / 60
        self._held = per_min
        self._at = now

    def level(self, now: float) -> float:
        """Return what it holds; negative in debt."""
        return min(self.capacity, self._held + max(0.0, now - self._at) * self._per_s)

    def wait_s(self, amount: float, now: float) -> float:
        """Return how long it takes until `amount` may be taken: 0 for now, infinity for more than it ever holds."""
        if amount > self.capacity:
            return inf
        return max(0.0, amount - self.level(now)) / self._per_s

    def take(self, amount: float, now: float) -> None:
        """Take `amount`, into debt if need be; a negative amount gives back, though never beyond the capacity."""
        self._held = min(self.capacity, self.level(now) - amount)
        self._at = max(self._at, now)
