"""The closed loop: requests meet a policy, its choices meet the world, and it hears what came of them.

The rule of this file: a discrete-event simulation on a virtual clock, one heap. Whatever could differ between two
policies by chance alone is a draw of `sim.arena.luck`. A request whose stream has begun is never sent again: its
caller has seen tokens. Endpoints do not slow down under the load a policy sends them.
"""

import math
from collections.abc import Sequence
from heapq import heappop, heappush

from routing.outcomes import Outcome
from sim.arena.fate import Fates
from sim.arena.log import Log, Recorder
from sim.arena.policy import ArenaRequest, Attempted, Policy
from sim.arena.truth import World

# A probe is a short completion.
PROBE_INPUT_TOKENS = 10
PROBE_OUTPUT_TOKENS = 5
_FIRST_TOKEN, _END, _ROUTE, _PROBED = range(4)
# A sum of times may fall short of the deadline by rounding.
_ROUNDING_S = 1e-6


class ArenaInvariantError(AssertionError):
    """A policy or the arena broke a rule that must hold in every run."""


class _Flight:
    """A request that is being served."""

    __slots__ = ("current", "made", "request", "retry_draw", "tried")

    def __init__(self, request: ArenaRequest) -> None:
        self.request = request
        self.tried: list[int] = []
        self.made: list[Attempted] = []
        self.current: Attempted
        self.retry_draw = 0.0


# Time, sequence number, kind, and the request concerned; of a probe, how it ended.
_Event = tuple[float, int, int, _Flight | Attempted]


def run(world: World, policy: Policy, *, check: bool = False) -> Log:
    """Play `world` against `policy`, which must be new. The same arguments give the same log to the byte.

    Args:
        world: what happens.
        policy: who decides.
        check: also verify the invariants of every attempt.

    Raises:
        ArenaInvariantError: with `check`, an attempt began after its deadline, an unknown endpoint was chosen, a time
            was not finite, or a request got two first tokens.
    """
    return _Arena(world, policy, check=check).play()


class _Arena:
    def __init__(self, world: World, policy: Policy, *, check: bool) -> None:
        self._world = world
        self._policy = policy
        self._check = check
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
                self._send(_Flight(request), arrives)
                row = next(rows, None)
            else:
                self._handle(heappop(heap))
        return self._recorder.log(len(self._world.endpoints), float(scenario.duration_s), work.arrival_s)

    def _handle(self, event: _Event) -> None:
        now, _, kind, flight = event
        if isinstance(flight, Attempted):
            self._policy.probed(flight, now)
        elif kind == _ROUTE:
            self._send(flight, now)
        elif kind == _FIRST_TOKEN:
            number = flight.request.number
            if self._check and not math.isnan(self._recorder.ttft_s[number]):
                raise ArenaInvariantError(f"request {number} got a second first token at {now:g} s")
            self._recorder.ttft_s[number] = now - flight.request.time
            self._policy.first_token(flight.current.endpoint, flight.current.attempt_id, now)
        else:
            self._end(flight, now)

    def _send(self, flight: _Flight, now: float) -> None:
        request, policy = flight.request, self._policy
        draws, (route_draw, flight.retry_draw) = self._luck.attempt(request.number, len(flight.tried))
        endpoint = policy.route(request, flight.tried, now, route_draw)
        if self._check:
            self._verify(flight, endpoint, now)
        if endpoint is None:
            self._give_up(flight)
            return
        if not flight.tried:
            self._recorder.first[request.number] = endpoint
        attempt_id = f"{request.number}.{len(flight.tried)}"
        patience_s = policy.patience_s(request, flight.tried, now)
        flight.tried.append(endpoint)
        policy.started(endpoint, attempt_id, now)
        fate = self._fates.of(
            endpoint, now, request.output_tokens, draws[endpoint], wait_s=patience_s,
            stall_s=policy.stall_timeout_s, left_s=request.deadline - now,
        )  # fmt: skip
        flight.current = Attempted(endpoint, attempt_id, *fate)
        if fate.ttft_s is not None:
            self._push(now + fate.ttft_s, _FIRST_TOKEN, flight)
        self._push(now + fate.latency_s, _END, flight)

    def _end(self, flight: _Flight, now: float) -> None:
        number, attempted = flight.request.number, flight.current
        self._policy.finished(attempted, now)
        flight.made.append(attempted)
        self._recorder.attempts[number] += 1
        if attempted.ttft_s is not None:
            tokens = flight.request.input_tokens + attempted.output_tokens
            self._recorder.cost_usd[number] += tokens * self._price[attempted.endpoint]
        if attempted.outcome is Outcome.OK:
            self._in_flight -= 1
            return
        if attempted.ttft_s is not None or now >= flight.request.deadline - _ROUNDING_S:
            self._give_up(flight)
            return
        delay_s = self._policy.retry(flight.request, flight.made, now, flight.retry_draw)
        if self._check and delay_s is not None and not 0 <= delay_s < math.inf:
            raise ArenaInvariantError(f"retry of request {number} after {delay_s} s")
        if delay_s is None or now + delay_s >= flight.request.deadline - _ROUNDING_S:
            self._give_up(flight)
        elif delay_s <= 0:
            self._send(flight, now)
        else:
            self._push(now + delay_s, _ROUTE, flight)

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
            self._push(now + fate.latency_s, _PROBED, attempted)

    def _note_warnings(self, warned: frozenset[int], now: float) -> None:
        for endpoint in sorted(warned ^ self._warned):
            self._recorder.warned_s.append(now)
            self._recorder.warned_endpoint.append(endpoint)
            self._recorder.warned_on.append(endpoint in warned)
        self._warned = warned

    def _push(self, time: float, kind: int, concerns: _Flight | Attempted) -> None:
        self._sequence += 1
        heappush(self._heap, (time, self._sequence, kind, concerns))

    def _verify(self, flight: _Flight, endpoint: int | None, now: float) -> None:
        number = flight.request.number
        if not now < flight.request.deadline:
            raise ArenaInvariantError(f"request {number} was sent at {now:g} s, after its deadline")
        if endpoint is not None and not 0 <= endpoint < len(self._world.endpoints):
            raise ArenaInvariantError(f"request {number} was sent to endpoint {endpoint}, which does not exist")
