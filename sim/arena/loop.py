"""The closed loop: requests meet a policy, its choices meet the world, and it hears what came of them.

The rule of this file: a discrete-event simulation on a virtual clock, one heap. Whatever could differ between two
policies by chance alone is a draw of `sim.arena.luck`. A request whose stream has begun is never sent again: its
caller has seen tokens. Endpoints do not slow down under the load a policy sends them.
"""

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

from routing.outcomes import Outcome
from sim.arena.fate import Fates
from sim.arena.log import Log, Recorder
from sim.arena.luck import Draws
from sim.arena.policy import ArenaRequest, Attempted, Policy
from sim.arena.referee import Referee
from sim.arena.truth import World

# A probe is a short completion.
PROBE_INPUT_TOKENS = 10
PROBE_OUTPUT_TOKENS = 5
# A sum of times may fall short of the deadline by rounding.
_ROUNDING_S = 1e-6


class _Flight:
    """A request that is being served. `tried` lists the endpoints in the order of sending, `made` what has ended."""

    __slots__ = ("made", "request", "retry_draw", "running", "tried")

    def __init__(self, request: ArenaRequest) -> None:
        self.request = request
        self.tried: list[int] = []
        self.made: list[Attempted] = []
        self.running: list[_Attempt] = []
        self.retry_draw = 0.0


class _Attempt:
    """An attempt under way, and what it will come to unless it is called off."""

    __slots__ = ("flight", "is_off", "sent", "will")

    def __init__(self, flight: _Flight, sent: float, will: Attempted) -> None:
        self.flight = flight
        self.sent = sent
        self.will = will
        self.is_off = False


# Time, sequence number, what to do then, and with what.
_Event = tuple[float, int, Callable[[Any, float], None], Any]


def run(world: World, policy: Policy, *, check: bool = False) -> Log:
    """Play `world` against `policy`, which must be new. The same arguments give the same log to the byte.

    Args:
        world: what happens.
        policy: who decides.
        check: let a `Referee` watch that arena and policy keep the rules.

    Raises:
        ArenaInvariantError: with `check`, one of the referee's rules was broken.
    """
    return _Arena(world, Referee(policy, len(world.endpoints)) if check else policy).play()


class _Arena:
    def __init__(self, world: World, policy: Policy) -> None:
        self._world = world
        self._policy = policy
        self._fates = Fates(world)
        self._luck = world.luck()
        self._heap: list[_Event] = []
        self._sequence = 0
        self._in_flight = 0
        self._recorder = Recorder(len(world.workload.arrival_s))
        self._price = [endpoint.usd_per_mtok / 1e6 for endpoint in world.endpoints]
        self._warned: frozenset[int] = frozenset()
        self._probes = 0

    def play(self) -> Log:
        """Run until the last request is over."""
        work, scenario, heap = self._world.workload, self._world.scenario, self._heap
        rows = zip(
            range(len(work.arrival_s)), work.arrival_s.tolist(), work.input_tokens.tolist(),
            work.output_tokens.tolist(), work.session.tolist(), strict=True,
        )  # fmt: skip
        row = next(rows, None)
        ticks, tick_s, next_tick = 0, self._policy.tick_s, 0.0
        while row is not None or self._in_flight:
            arrives = math.inf if row is None else row[1]
            due = heap[0][0] if heap else math.inf
            if next_tick <= arrives and next_tick <= due:
                self._tick(next_tick, probing=next_tick < scenario.duration_s)
                ticks += 1
                next_tick = ticks * tick_s
            elif row is not None and arrives <= due:
                self._in_flight += 1
                request = ArenaRequest(row[0], arrives, arrives + scenario.deadline_s, row[2], row[3], row[4])
                self._route(_Flight(request), arrives)
                row = next(rows, None)
            else:
                now, _, act, concerned = heappop(heap)
                act(concerned, now)
        return self._recorder.log(len(self._world.endpoints), float(scenario.duration_s), work.arrival_s)

    def _route(self, flight: _Flight, now: float) -> None:
        request, tried = flight.request, flight.tried
        draws, (route_draw, flight.retry_draw) = self._luck.attempt(request.number, len(tried))
        endpoint = self._policy.route(request, tried, now, route_draw)
        if endpoint is None:
            self._again(flight, self._policy.wait_s(request, flight.made, now, flight.retry_draw), now)
            return
        if not tried:
            self._recorder.first[request.number] = endpoint
        attempt = self._send(flight, endpoint, draws, now)
        if not request.idempotent or self._recorder.hedged[request.number]:
            return
        after_s = self._policy.hedge_after_s(request, tried, now)
        fate = attempt.will
        heard_s = fate.latency_s if fate.ttft_s is None else fate.ttft_s
        # One that will have answered or failed by then needs no hedge. Moments are compared, because two waits may
        # differ and yet end at the same one.
        if after_s is not None and now + after_s < now + heard_s:
            self._push(now + after_s, self._hedge, flight)

    def _hedge(self, flight: _Flight, now: float) -> None:
        request, tried = flight.request, flight.tried
        draws, (draw, _) = self._luck.attempt(request.number, len(tried))
        endpoint = self._policy.hedge(request, tried, now, draw)
        if endpoint is not None:
            self._recorder.hedged[request.number] = 1
            self._send(flight, endpoint, draws, now)

    def _send(self, flight: _Flight, endpoint: int, draws: list[Draws], now: float) -> _Attempt:
        request, policy = flight.request, self._policy
        patience_s = policy.patience_s(request, flight.tried, now)
        attempt_id = f"{request.number}.{len(flight.tried)}"
        flight.tried.append(endpoint)
        policy.started(endpoint, attempt_id, now)
        fate = self._fates.of(
            endpoint, now, request.output_tokens, draws[endpoint], wait_s=patience_s,
            stall_s=policy.stall_timeout_s, left_s=request.deadline - now,
        )  # fmt: skip
        attempt = _Attempt(flight, now, Attempted(endpoint, attempt_id, *fate))
        flight.running.append(attempt)
        if fate.ttft_s is not None:
            self._push(now + fate.ttft_s, self._first_token, attempt)
        self._push(now + fate.latency_s, self._end, attempt)
        return attempt

    def _first_token(self, attempt: _Attempt, now: float) -> None:
        if attempt.is_off:
            return
        flight, will = attempt.flight, attempt.will
        self._recorder.ttft_s[flight.request.number] = now - flight.request.time
        self._policy.first_token(will.endpoint, will.attempt_id, now)
        for other in [other for other in flight.running if other is not attempt]:
            other.is_off = True
            late, took_s = other.will, now - other.sent
            lost = Attempted(late.endpoint, late.attempt_id, Outcome.CANCELLED, None, took_s, None, 0, None)
            self._close(other, lost, now)

    def _end(self, attempt: _Attempt, now: float) -> None:
        if attempt.is_off:
            return
        flight, attempted = attempt.flight, attempt.will
        self._close(attempt, attempted, now)
        if attempted.outcome is Outcome.OK:
            self._in_flight -= 1
        elif attempted.ttft_s is not None:
            self._give_up(flight)
        elif not flight.running:
            self._retry(flight, now)

    def _close(self, attempt: _Attempt, attempted: Attempted, now: float) -> None:
        """Book the end of an attempt. Whoever answered, or was called off while it read the prompt, is paid."""
        flight, number = attempt.flight, attempt.flight.request.number
        flight.running.remove(attempt)
        self._policy.finished(attempted, now)
        flight.made.append(attempted)
        self._recorder.attempts[number] += 1
        if attempted.ttft_s is not None or attempted.outcome is Outcome.CANCELLED:
            tokens = flight.request.input_tokens + attempted.output_tokens
            self._recorder.cost_usd[number] += tokens * self._price[attempted.endpoint]

    def _retry(self, flight: _Flight, now: float) -> None:
        if now >= flight.request.deadline - _ROUNDING_S:
            self._give_up(flight)
        else:
            self._again(flight, self._policy.retry(flight.request, flight.made, now, flight.retry_draw), now)

    def _again(self, flight: _Flight, delay_s: float | None, now: float) -> None:
        if delay_s is None or now + delay_s >= flight.request.deadline - _ROUNDING_S:
            self._give_up(flight)
        elif delay_s <= 0:
            self._route(flight, now)
        else:
            self._push(now + delay_s, self._route, flight)

    def _give_up(self, flight: _Flight) -> None:
        self._recorder.failed[flight.request.number] = 1
        self._in_flight -= 1

    def _tick(self, now: float, *, probing: bool) -> None:
        probes = self._policy.tick(now)
        if probing and probes:
            self._probe(probes, now)
        warned = self._policy.warned()
        if warned or self._warned:
            self._note_warnings(frozenset(warned), now)

    def _probe(self, endpoints: Sequence[int], now: float) -> None:
        patience_s = self._policy.probe_timeout_s
        for endpoint in endpoints:
            fate = self._fates.of(
                endpoint, now, PROBE_OUTPUT_TOKENS, self._luck.probe(now, endpoint), wait_s=patience_s,
                stall_s=patience_s, left_s=patience_s,
            )  # fmt: skip
            attempted = Attempted(endpoint, f"p{self._probes}", *fate)
            self._probes += 1
            tokens = 0 if fate.ttft_s is None else PROBE_INPUT_TOKENS + fate.output_tokens
            self._recorder.probe_s.append(now)
            self._recorder.probe_endpoint.append(endpoint)
            self._recorder.probe_cost_usd.append(tokens * self._price[endpoint])
            self._push(now + fate.latency_s, self._policy.probed, attempted)

    def _note_warnings(self, warned: frozenset[int], now: float) -> None:
        for endpoint in sorted(warned ^ self._warned):
            self._recorder.warned_s.append(now)
            self._recorder.warned_endpoint.append(endpoint)
            self._recorder.warned_on.append(endpoint in warned)
        self._warned = warned

    def _push(self, time: float, act: Callable[[Any, float], None], concerned: object) -> None:
        self._sequence += 1
        heappush(self._heap, (time, self._sequence, act, concerned))
