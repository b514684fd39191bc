"""Prequal: probes of requests in flight and latency, chosen by the hot/cold lexicographic rule.

Wydrowski, Kleinberg and others, "Load is not what you should balance: Introducing Prequal" (NSDI 2024), with its
parameters: 3 probes per query into a pool of 16, each used once and at most 1 s old, one more removed per query (in
turn the oldest and the worst); an endpoint is hot above the 0.84 quantile (2^−0.25) of requests in flight seen in
probes; the choice is the cold one of least latency, or among hot ones the least loaded; fewer than 2 probes in the pool
make it random.

Where language-model providers differ from the paper's servers: they report neither load nor latency, so that a probe
reads what this router knows itself: its own requests in flight there and its average latency. An endpoint not heard of
for 5 s gets a real probe of 5 s to keep that alive (the paper's servers always answer). The paper avoids sinkholes
of fast failures without giving the rule: a failure counts as a latency of 10 s. It has no retries: two were taken, at
once, on endpoints not tried; 60 s of patience. The reuse formula has no value for pools of few servers: 1, its least.
Balanced: no endpoint is preferred.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted
from sim.policies.base import SILENT, Baseline, Settings, may_retry

_SMOOTHING = 0.3
_REMEMBERED_LOADS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PrequalSettings(Settings):
    """See the module's docstring."""

    probes: int = 3
    pool: int = 16
    max_age_s: float = 1.0
    hot_share: float = 0.84
    unheard_s: float = 5.0
    failure_latency_s: float = 10.0
    retries: int = 2
    attempt_timeout_s: float = 60.0
    stall_timeout_s: float = 60.0


class _Probe(NamedTuple):
    endpoint: int
    in_flight: int
    latency_s: float
    time: float


class Prequal(Baseline):
    """See the module's docstring."""

    name = "prequal"

    def __init__(self, endpoints: int, seed: int, settings: PrequalSettings) -> None:
        super().__init__(endpoints, settings, attempts=1 + settings.retries)
        self._settings = settings
        self._seed = seed
        self._pool: list[_Probe] = []
        self._loads: deque[int] = deque()
        self._sorted_loads: list[int] = []
        self._in_flight = [0] * endpoints
        self._latency_s: list[float | None] = [None] * endpoints
        self._heard = [0.0] * endpoints
        self._open: Sequence[int] = self._order
        self._query = 0

    def consider(self, endpoints: Sequence[int]) -> None:
        """Balance over these endpoints alone from now on, as over a subset of the paper's servers; not empty."""
        self._open = endpoints
        self._pool = [probe for probe in self._pool if probe.endpoint in endpoints]

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        """Return the endpoint of the best fresh probe, or a random one when there are too few."""
        self._query = request.number * (1 + self._settings.retries) + len(tried)
        oldest = now - self._settings.max_age_s
        fresh = [p for p in self._pool if p.time >= oldest and p.endpoint not in tried]
        if len(fresh) >= 2:
            return self._best(fresh).endpoint
        left = [e for e in self._open if e not in tried] or [e for e in self._order if e not in tried]
        return left[int(draw * len(left))] if left else None

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:  # noqa: ARG002  # the protocol's signature
        """Go on at once while retries last."""
        return 0.0 if may_retry(made, self._settings.retries) else None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:  # noqa: ARG002  # the protocol's signature
        """Use up the probe that led here, remove one more, and take new ones."""
        self._in_flight[endpoint] += 1
        pool = self._pool
        used = next((i for i, probe in enumerate(pool) if probe.endpoint == endpoint), None)
        if used is not None:
            pool.pop(used)
        if pool:
            pool.remove(self._worst(pool)) if self._query % 2 else pool.pop(0)
        self._probe(now, 2 * self._query)

    def finished(self, attempted: Attempted, now: float) -> None:
        """Learn a latency."""
        self._in_flight[attempted.endpoint] -= 1
        self._learn(attempted, now)

    def tick(self, now: float) -> Sequence[int]:
        """Refresh the pool when nothing else does; return the endpoints not heard of for long."""
        self._probe(now, 2 * int(now) + 1)
        unheard = [e for e in self._order if now - self._heard[e] >= self._settings.unheard_s]
        for endpoint in unheard:
            self._heard[endpoint] = now
        return unheard

    def probed(self, attempted: Attempted, now: float) -> None:
        """Learn a latency from a real probe."""
        self._learn(attempted, now)

    def _learn(self, attempted: Attempted, now: float) -> None:
        endpoint = attempted.endpoint
        if attempted.outcome in SILENT:
            return
        self._heard[endpoint] = now
        if attempted.outcome is not Outcome.OK:
            self._latency_s[endpoint] = max(attempted.latency_s, self._settings.failure_latency_s)
        elif attempted.ttft_s is not None:
            old_s, new_s = self._latency_s[endpoint], attempted.ttft_s
            known = old_s is not None and old_s < self._settings.failure_latency_s
            self._latency_s[endpoint] = new_s if not known or old_s is None else old_s + _SMOOTHING * (new_s - old_s)

    def _probe(self, now: float, place: int) -> None:
        """Take new probes. Each `place`, a query or a second, has draws of its own, as in `sim.arena.luck`: so two runs
        that differ once do not draw differently ever after.
        """
        settings, pool, rng = self._settings, self._pool, Random((self._seed << 64) + place)
        oldest = now - settings.max_age_s
        while pool and pool[0].time < oldest:
            pool.pop(0)
        for _ in range(settings.probes):
            endpoint = self._open[int(rng.random() * len(self._open))]
            load = self._in_flight[endpoint]
            pool.append(_Probe(endpoint, load, self._latency_s[endpoint] or 0.0, now))
            self._loads.append(load)
            insort(self._sorted_loads, load)
            if len(self._loads) > _REMEMBERED_LOADS:
                self._sorted_loads.pop(bisect_left(self._sorted_loads, self._loads.popleft()))
        del pool[: max(0, len(pool) - settings.pool)]

    def _hot_above(self) -> int:
        loads = self._sorted_loads
        return loads[int(self._settings.hot_share * (len(loads) - 1))] if loads else 0

    def _best(self, probes: Sequence[_Probe]) -> _Probe:
        limit = self._hot_above()
        return min(probes, key=lambda p: (1, p.in_flight) if p.in_flight > limit else (0, p.latency_s))

    def _worst(self, probes: Sequence[_Probe]) -> _Probe:
        limit = self._hot_above()
        return max(probes, key=lambda p: (1, p.in_flight) if p.in_flight > limit else (0, p.latency_s))
