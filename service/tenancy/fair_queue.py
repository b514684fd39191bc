"""Weighted fair queueing before the upstream: who is next when not everybody can be.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queuing", SIGCOMM 1996) in its form for a server
that works on several requests at once, SFQ(D) (W. Jin, J. Chase, J. Kaur, "Interposed Proportional Sharing for a
Storage Service Utility", SIGMETRICS 2004). Each request gets a start tag, the later of virtual time and its flow's last
finish tag, and a finish tag, its cost over the flow's weight later. The least start tag is served next; virtual time is
the start tag served last. So a flow gets its share of the work whatever the others send, an idle one saves nothing up,
and one that comes back is next.

Classes do not order the queue, for that would starve the lower ones. They say who is turned away when it is full.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import inf


class Criticality(IntEnum):
    """What is turned away first: the lowest."""

    SHEDDABLE = 0
    DEFAULT = 1
    CRITICAL = 2


@dataclass(frozen=True, slots=True)
class Share:
    """What a flow (a tenant) is entitled to."""

    weight: float = 1.0
    criticality: Criticality = Criticality.DEFAULT


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that waits, until it is `admitted`."""

    flow: str
    start: float
    finish: float
    admitted: bool = False


class _Flow:
    __slots__ = ("finish", "share", "waiting")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.finish = 0.0
        self.waiting: deque[Ticket] = deque()


class FairQueue:
    """One queue of all flows, bounded per flow and in total.

    Args:
        shares: every flow there is, by name.
        most: how many may wait.
        most_per_flow: how many of one flow may.
    """

    def __init__(self, shares: Mapping[str, Share], most: int, most_per_flow: int) -> None:
        self._flows = {name: _Flow(share) for name, share in shares.items()}
        self._waiting: dict[str, _Flow] = {}
        self._virtual = 0.0
        self._most = most
        # Where one may fill the whole queue, a full queue is everybody's and not its own.
        self._most_per_flow = most_per_flow if most_per_flow < most else inf
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def waiting(self, name: str) -> int:
        """Return how many requests of a flow wait."""
        return len(self._flows[name].waiting)

    def pass_by(self, name: str, cost: float) -> None:
        """A request is served at once; it counts towards its flow's share all the same."""
        flow = self._flows[name]
        start = max(self._virtual, flow.finish)
        flow.finish = start + cost / flow.share.weight
        self._virtual = start

    def is_full_for(self, name: str) -> bool:
        """Tell whether the flow has as many waiting as one may have."""
        return len(self._flows[name].waiting) >= self._most_per_flow

    def put(self, name: str, cost: float) -> Ticket:
        """Let a request wait. The bounds are the caller's business: see `is_full_for` and `make_room`."""
        flow = self._flows[name]
        start = max(self._virtual, flow.finish)
        ticket = Ticket(name, start, start + cost / flow.share.weight)
        flow.finish = ticket.finish
        flow.waiting.append(ticket)
        self._waiting[name] = flow
        self._count += 1
        return ticket

    def make_room(self, name: str) -> tuple[bool, Ticket | None]:
        """Tell whether a request of this flow may wait, and who has to go for it.

        In a full queue that is the newest of the longest line of the lowest class, if that class is lower than its own.
        """
        if self._count < self._most:
            return True, None
        lowest = min(self._waiting.values(), key=lambda flow: (flow.share.criticality, -len(flow.waiting)))
        if lowest.share.criticality >= self._flows[name].share.criticality:
            return False, None
        turned_away = lowest.waiting[-1]
        self.remove(turned_away)
        return True, turned_away

    def pop(self) -> Ticket:
        """Return who is next. Raises ValueError when nobody waits.

        This looks at every flow that waits: they are few enough that a heap would cost more than it saves.
        """
        flow = min(self._waiting.values(), key=lambda each: each.waiting[0].start)
        ticket = flow.waiting.popleft()
        self._virtual = max(self._virtual, ticket.start)
        self._left(ticket.flow, flow)
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Somebody who waits goes. When it was the flow's last, the flow gets back what it would have cost."""
        flow = self._flows[ticket.flow]
        if flow.waiting[-1] is ticket:
            flow.finish = ticket.start
            flow.waiting.pop()
        else:
            flow.waiting.remove(ticket)
        self._left(ticket.flow, flow)

    def ahead(self, name: str) -> float:
        """Return how many requests are served before one that this flow adds now, about: those in its own line, and
        in the same time the others' by their weights; at most all that wait.
        """
        own = self._flows[name]
        weights = sum([flow.share.weight for flow in self._waiting.values() if flow is not own])
        return min(self._count, len(own.waiting) + (len(own.waiting) + 1) * weights / own.share.weight)

    def _left(self, name: str, flow: _Flow) -> None:
        self._count -= 1
        if not flow.waiting:
            del self._waiting[name]
