"""Weighted fair queueing on a virtual clock (L-10): exact where the paper is exact."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tenancy.fair_queue import Criticality, FairQueue, Share, Ticket
from service.tenancy.gate import Bounds, Gate, Load, Queued, Shed, Why
from service.tenancy.limiter import GradientLimiter, LimiterPolicy


def _queue(most: int = 100, most_per_flow: int = 100, **shares: Share) -> FairQueue:
    return FairQueue(shares, most, most_per_flow)


def _order(queue: FairQueue) -> str:
    return "".join(queue.pop().flow for _ in range(len(queue)))


def test_equal_flows_take_turns_whoever_came_first() -> None:
    queue = _queue(a=Share(), b=Share())
    for flow in "aaab":
        queue.put(flow, 1)
    assert _order(queue) == "abaa"


def test_a_flow_of_twice_the_weight_goes_twice_as_often() -> None:
    queue = _queue(a=Share(), b=Share(weight=2))
    for flow in "aaabbbbbb":
        queue.put(flow, 1)
    assert Counter(_order(queue)[:6]) == {"a": 2, "b": 4}


def test_work_counts_and_not_requests() -> None:
    queue = _queue(a=Share(), b=Share())
    for _ in range(4):
        queue.put("a", 3)
    for _ in range(6):
        queue.put("b", 1)
    assert Counter(_order(queue)[:8]) == {"a": 2, "b": 6}


def test_an_idle_flow_saves_nothing_up_and_is_next_when_it_comes_back() -> None:
    queue = _queue(a=Share(), b=Share())
    for _ in range(20):
        queue.put("a", 1)
    for _ in range(10):
        queue.pop()
    for _ in range(10):
        queue.put("b", 1)
    assert Counter(_order(queue)[:10]) == {"a": 5, "b": 5}


def test_what_was_served_at_once_counts_too() -> None:
    queue = _queue(a=Share(), b=Share())
    for _ in range(3):
        queue.pass_by("a", 1)
    queue.put("a", 1)
    queue.put("b", 1)
    assert _order(queue) == "ba"


def test_who_leaves_the_end_of_the_line_pays_nothing() -> None:
    queue = _queue(a=Share(), b=Share())
    queue.put("a", 1)
    queue.remove(queue.put("a", 100))
    queue.put("a", 1)
    queue.put("b", 1)
    queue.put("b", 1)
    assert _order(queue) == "abab"


def test_a_full_queue_turns_away_the_lowest_class_and_never_its_own() -> None:
    shares = {
        "critical": Share(criticality=Criticality.CRITICAL),
        "default": Share(),
        "sheddable": Share(criticality=Criticality.SHEDDABLE),
    }
    queue = FairQueue(shares, 3, 3)
    queue.put("default", 1)
    queue.put("sheddable", 1)
    newest = queue.put("sheddable", 1)
    assert queue.make_room("sheddable") == (False, None)
    assert queue.make_room("critical") == (True, newest)
    queue.put("critical", 1)
    assert queue.make_room("default")[1] is not None
    queue.put("default", 1)
    assert queue.make_room("default") == (False, None)
    assert [queue.waiting(name) for name in shares] == [1, 2, 0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=30, max_size=120))
def test_the_bound_of_the_paper_holds_in_every_busy_period(asked: list[tuple[str, int]]) -> None:
    """Goyal et al., Theorem 1: while two flows both wait, the work they got, by weight, differs by at most a largest
    request of each.
    """
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    queue = _queue(1000, 1000, **{name: Share(weight) for name, weight in weights.items()})
    costs: dict[Ticket, int] = {}
    for flow, cost in asked:
        costs[queue.put(flow, cost)] = cost
    served = dict.fromkeys("abc", 0.0)
    bound = {name: max([0, *(cost for flow, cost in asked if flow == name)]) / weights[name] for name in "abc"}
    while len(queue):
        for first, second in ("ab", "bc", "ac"):
            if queue.waiting(first) and queue.waiting(second):
                assert abs(served[first] - served[second]) <= bound[first] + bound[second] + 1e-9
        ticket = queue.pop()
        served[ticket.flow] += costs[ticket] / weights[ticket.flow]


@given(st.lists(st.tuples(st.sampled_from(["put", "pop", "remove"]), st.sampled_from("abc"), st.integers(0, 30))))
def test_counts_hold_whatever_happens(steps: list[tuple[str, str, int]]) -> None:
    queue = _queue(10, 5, a=Share(), b=Share(2, Criticality.CRITICAL), c=Share(1, Criticality.SHEDDABLE))
    waiting: list[Ticket] = []
    for what, flow, number in steps:
        if what == "put" and not queue.is_full_for(flow):
            has_room, gone = queue.make_room(flow)
            if gone is not None:
                waiting.remove(gone)
            if has_room:
                waiting.append(queue.put(flow, 1 + number))
        elif what == "pop" and waiting:
            waiting.remove(queue.pop())
        elif what == "remove" and waiting:
            queue.remove(waiting.pop(number % len(waiting)))
        assert len(queue) == len(waiting) <= 10
        for name in "abc":
            assert queue.waiting(name) == sum(ticket.flow == name for ticket in waiting) <= 5


@dataclass
class _World:
    """A gate before servers that take `stay_s` for each request, on a virtual clock."""

    gate: Gate
    stay_s: float = 0.1
    waits: dict[str, list[float]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    _ends: list[tuple[float, int]] = field(default_factory=list)
    _since: dict[Ticket, float] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def play(self, arrivals: list[tuple[float, str]], *, patience_s: float = 10.0) -> None:
        for at, flow in sorted(arrivals):
            self._until(at)
            if self.gate.enter(flow, 1):
                self._serve(flow, at, at)
                continue
            entry = self.gate.queue(flow, 1, patience_s)
            if isinstance(entry, Shed):
                self.refused[flow] += 1
                continue
            self._since[entry.ticket] = at
            if entry.turned_away is not None:
                self.refused[entry.turned_away.flow] += 1
        self._until(1e9)

    def _serve(self, flow: str, asked: float, now: float) -> None:
        self.waits.setdefault(flow, []).append(now - asked)
        heappush(self._ends, (now + self.stay_s, next(self._numbers)))

    def _until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            at, _ = heappop(self._ends)
            for ticket in self.gate.leave(self.stay_s):
                self._serve(ticket.flow, self._since[ticket], at)


def _gate(limit: int, shares: dict[str, Share], bounds: Bounds = Bounds()) -> Gate:  # noqa: B008  # it is frozen
    limiter = GradientLimiter(LimiterPolicy(least=limit, most=limit), 0.0)
    return Gate(shares, bounds, limiter)


def _steady(flow: str, rate: float, seconds: float = 30.0) -> list[tuple[float, str]]:
    return [(number / rate, flow) for number in range(int(rate * seconds))]


def test_l10_a_flood_of_one_tenant_leaves_the_others_as_they_were_alone() -> None:
    """Capacity 200/s. Three tenants at 20/s each, and one that sends 80 % of the load: 240/s of 300/s."""
    shares = {name: Share() for name in ("loud", "a", "b", "c")}
    quiet = [arrival for name in "abc" for arrival in _steady(name, 20)]
    alone, together = _World(_gate(20, shares)), _World(_gate(20, shares))
    alone.play(quiet)
    together.play(quiet + _steady("loud", 240))
    assert not any(together.refused[name] for name in "abc")
    for name in "abc":
        assert len(together.waits[name]) == len(alone.waits[name]) == 600
        assert max(alone.waits[name]) == 0
        # A place is free every 5 ms on average, and in waves of all 20 every 100 ms at worst.
        assert max(together.waits[name]) <= together.stay_s + 1e-9
        assert sorted(together.waits[name])[300] <= together.stay_s / 4
    assert together.refused["loud"] > 0, "the load was more than could be served"
    assert len(together.waits["loud"]) > 30 * 130, "what the others leave is the loud one's: nothing lies idle"


def test_l10_at_saturation_by_all_everybody_gets_a_share_by_weight() -> None:
    shares = {"a": Share(), "b": Share(weight=3)}
    world = _World(_gate(20, shares))
    world.play(_steady("a", 400) + _steady("b", 400), patience_s=3.0)
    assert len(world.waits["b"]) / len(world.waits["a"]) == pytest.approx(3, rel=0.1)


def test_l09_queues_are_bounded_and_empty_again_after_a_burst() -> None:
    world = _World(_gate(20, {"a": Share()}, Bounds(50, 50)))
    burst = [(1.0, "a")] * 500
    world.play(burst + _steady("a", 100, 5))
    assert 400 <= world.refused["a"] <= 500
    assert world.gate.load == Load(in_flight=0, queued=0, limit=20)
    assert world.waits["a"][-1] == 0


def test_who_cannot_be_in_time_is_turned_away_at_once() -> None:
    gate = _gate(10, {"a": Share()})
    for _ in range(10):
        assert gate.enter("a", 1)
    gate.leave(1.0)
    assert gate.enter("a", 1)
    for waiting in range(19):
        assert isinstance(gate.queue("a", 1, 2.0), Queued), f"{waiting} before it: less than two seconds"
    for _ in range(2):
        gate.queue("a", 1, 5.0)
    late = gate.queue("a", 1, 2.0)
    assert isinstance(late, Shed)
    assert late.why is Why.TOO_LATE
    assert late.retry_after_s == pytest.approx(2.2, rel=0.1)
    assert isinstance(gate.queue("a", 1, 5.0), Queued)


def test_a_tenants_own_line_does_not_count_against_another_that_comes() -> None:
    """The line of one is long; the deadline of the other's request is judged by its own."""
    gate = _gate(10, {"loud": Share(), "quiet": Share()}, Bounds(1000, 1000))
    for _ in range(10):
        assert gate.enter("loud", 1)
    gate.leave(1.0)
    assert gate.enter("loud", 1)
    for _ in range(200):
        assert isinstance(gate.queue("loud", 1, 60.0), Queued)
    assert isinstance(gate.queue("quiet", 1, 0.5), Queued)


def test_a_gate_that_closes_lets_nobody_wait() -> None:
    gate = _gate(1, {"a": Share()})
    assert gate.enter("a", 1)
    waiting = gate.queue("a", 1, 5.0)
    assert isinstance(waiting, Queued)
    assert gate.close() == [waiting.ticket]
    refused = gate.queue("a", 1, 5.0)
    assert isinstance(refused, Shed)
    assert refused.why is Why.CLOSING
    assert gate.leave(0.1) == []
    assert gate.enter("a", 1), "what needs not wait is served to the end"
