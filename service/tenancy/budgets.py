"""A budget in dollars that begins anew with each day or month (UTC)."""

from datetime import UTC, datetime, timedelta
from enum import StrEnum


class Period(StrEnum):
    """After what time a budget begins anew."""

    DAY = "day"
    MONTH = "month"


def begin_of(period: Period, now: float) -> float:
    """Return when the current period began. Times are seconds since the epoch."""
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight if period is Period.DAY else midnight.replace(day=1)).timestamp()


def end_of(period: Period, now: float) -> float:
    """Return when the current period ends."""
    begin = datetime.fromtimestamp(begin_of(period, now), UTC)
    # 32 days after the first of a month is in the next one, whatever the month.
    return begin_of(period, (begin + timedelta(days=1 if period is Period.DAY else 32)).timestamp())


class Budget:
    """What may be spent in a period, what was, and what requests on their way may yet cost.

    Money is held when a request is let in, at the most that it may cost, so that many at once cannot spend what one
    could not.
    """

    __slots__ = ("_ends", "_held_usd", "limit_usd", "period", "spent_usd")

    def __init__(self, limit_usd: float, period: Period, now: float, spent_usd: float = 0.0) -> None:
        self.limit_usd = limit_usd
        self.period = period
        self.spent_usd = spent_usd
        self._held_usd = 0.0
        self._ends = end_of(period, now)

    def renews_at(self, now: float) -> float:
        """Return when it begins anew."""
        self._roll(now)
        return self._ends

    def affords(self, cost_usd: float, now: float) -> bool:
        """Tell whether a request that may cost so much fits beside those on their way. One that costs nothing fits
        while anything is left.
        """
        self._roll(now)
        bound_usd = self.spent_usd + self._held_usd
        return bound_usd < self.limit_usd and bound_usd + cost_usd <= self.limit_usd

    def hold(self, cost_usd: float) -> None:
        """Set money aside for a request."""
        self._held_usd += cost_usd

    def release(self, held_usd: float) -> None:
        """A request for which money was set aside has ended."""
        self._held_usd = max(0.0, self._held_usd - held_usd)

    def spend(self, cost_usd: float, now: float) -> None:
        """Something has cost so much. It counts in the period it ended in."""
        self._roll(now)
        self.spent_usd += cost_usd

    def _roll(self, now: float) -> None:
        if now >= self._ends:
            self.spent_usd = 0.0
            self._ends = end_of(self.period, now)
