"""Quotas in fixed windows, the way providers announce and enforce their rate limits.

The rule of this file: it is pure. The time is an argument.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` units in each window of `window_s` seconds; windows follow one another from `since_s`."""

    limit: int
    window_s: float
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """A quota's answer: was the amount granted, what is left of the window in units, and seconds until it is whole."""

    granted: bool
    remaining: int
    reset_s: float


class QuotaMeter:
    """Counts what was taken of each quota in its present window."""

    def __init__(self) -> None:
        self._taken: dict[Quota, tuple[int, int]] = {}

    def take(self, quota: Quota, amount: int, t_s: float) -> Allowance:
        """Take `amount` units at `t_s`, which never goes back; what is refused is not counted."""
        window = math.floor((t_s - quota.since_s) / quota.window_s)
        counted, taken = self._taken.get(quota, (window, 0))
        if counted != window:
            taken = 0
        granted = taken + amount <= quota.limit
        taken += amount if granted else 0
        self._taken[quota] = (window, taken)
        return Allowance(granted, quota.limit - taken, quota.since_s + (window + 1) * quota.window_s - t_s)
