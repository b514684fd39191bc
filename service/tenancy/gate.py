"""The door to the upstream: lets requests in while the process takes on more, else lets them wait in a fair queue, else
turns them away.

The rule of this file: it decides, the shell acts. Whoever is let in, or has to go, is returned; nothing waits here.
Without pressure a request costs one comparison and one tag.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from service.tenancy.fair_queue import FairQueue, Share, Ticket
from service.tenancy.limiter import GradientLimiter

_NEWEST_WEIGHT = 0.05
_LEAST_RETRY_S = 0.1


class Why(StrEnum):
    """Why a request is turned away."""

    OWN_QUEUE_FULL = "own_queue_full"
    FULL = "full"
    TOO_LATE = "too_late"
    OUTRANKED = "outranked"
    CLOSING = "closing"


@dataclass(frozen=True, slots=True)
class Shed:
    """A request is turned away; `retry_after_s` is about when there should be room."""

    why: Why
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Queued:
    """A request waits under `ticket`; whoever holds `turned_away` had to go for it."""

    ticket: Ticket
    turned_away: Ticket | None


@dataclass(frozen=True, slots=True)
class Load:
    """How many requests are in, how many wait, and how many may be in."""

    in_flight: int = 0
    queued: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many may wait, of all and of one flow."""

    most_queued: int = 1000
    most_queued_per_flow: int = 250


class Gate:
    """See the module's docstring. Times are seconds on any steady clock.

    Args:
        shares: every flow there is, by name.
        bounds: of the queue.
        limiter: how many may be in.
    """

    def __init__(self, shares: Mapping[str, Share], bounds: Bounds, limiter: GradientLimiter) -> None:
        self._queue = FairQueue(shares, bounds.most_queued, bounds.most_queued_per_flow)
        self._limiter = limiter
        self._stay_s = 0.0
        self._is_open = True
        self.in_flight = 0

    @property
    def load(self) -> Load:
        """How full it is."""
        return Load(self.in_flight, len(self._queue), self._limiter.limit)

    def enter(self, flow: str, cost: float) -> bool:
        """Let a request in if nobody has to wait; if False, it may `queue`. `cost` is the work it is, in any unit that
        all requests share.
        """
        if self.in_flight >= self._limiter.limit or self._queue:
            return False
        self.in_flight += 1
        self._queue.pass_by(flow, cost)
        return True

    def queue(self, flow: str, cost: float, patience_s: float) -> Queued | Shed:
        """Let a request wait, or turn it away at once: where it would be too late anyway, waiting only costs."""
        if not self._is_open:
            return Shed(Why.CLOSING, _LEAST_RETRY_S)
        wait_s = self._wait_s(flow)
        if self._queue.is_full_for(flow):
            return Shed(Why.OWN_QUEUE_FULL, wait_s)
        if wait_s > patience_s:
            return Shed(Why.TOO_LATE, wait_s)
        has_room, turned_away = self._queue.make_room(flow)
        if not has_room:
            return Shed(Why.FULL, wait_s)
        return Queued(self._queue.put(flow, cost), turned_away)

    def give_up(self, ticket: Ticket) -> float:
        """Whoever holds the ticket waits no longer; return about when there should be room."""
        self._queue.remove(ticket)
        return self._wait_s(ticket.flow)

    def leave(self, stay_s: float | None) -> list[Ticket]:
        """A request that was in has ended after so long, None when it was not sent; return who is let in now."""
        self.in_flight -= 1
        if stay_s is not None:
            self._stay_s += (stay_s - self._stay_s) * (_NEWEST_WEIGHT if self._stay_s else 1.0)
        return self.admitted() if self._queue else []

    def observe(self, endpoint: str, latency_s: float, now: float, *, streamed: bool) -> list[Ticket]:
        """An endpoint answered (see `GradientLimiter.observe`); return who is let in now."""
        self._limiter.observe(endpoint, latency_s, self.in_flight, now, streamed=streamed)
        return self.admitted() if self._queue else []

    def close(self) -> list[Ticket]:
        """Let nobody wait any more; return those who did."""
        self._is_open = False
        return [self._queue.pop() for _ in range(len(self._queue))]

    def admitted(self) -> list[Ticket]:
        """Let in as many of those who wait as there is room for; return them."""
        room = self._limiter.limit - self.in_flight
        tickets = [self._queue.pop() for _ in range(min(room, len(self._queue)))]
        self.in_flight += len(tickets)
        for ticket in tickets:
            ticket.admitted = True
        return tickets

    def _wait_s(self, flow: str) -> float:
        """Return about how long a request of this flow would wait: by Little's law, the limit over how long a request
        stays is how many end per second.
        """
        return max(_LEAST_RETRY_S, (self._queue.ahead(flow) + 1) * self._stay_s / self._limiter.limit)
