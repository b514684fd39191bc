"""One suite for every policy: whatever happens, choices are valid, times finite, reads harmless, and all repeatable."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.outcomes import Outcome
from sim.arena.policy import ArenaRequest, Attempted, Policy
from sim.policies import NAMES, make
from tests.policy_driver import endpoints, request

_MOST_ATTEMPTS = 8
FRACTION = st.floats(0.0, 1.0, exclude_max=True)
GAP_S = st.one_of(st.floats(0.0, 0.5), st.floats(0.5, 30.0), st.sampled_from([0.0, 5.0, 60.0, 300.0, 4000.0]))


@dataclass(frozen=True, slots=True)
class Step:
    """A gap, then a request whose attempts end by `outcomes` in turn (the last repeats); some take their time."""

    gap_s: float
    draw: float
    outcomes: tuple[Outcome, ...]
    latency_s: float
    ttft_share: float | None
    retry_after_s: float | None
    session: int
    idempotent: bool


STEPS = st.lists(
    st.builds(
        Step,
        GAP_S,
        FRACTION,
        st.lists(st.sampled_from(Outcome), min_size=1, max_size=3).map(tuple),
        st.floats(0.001, 20.0),
        st.one_of(st.none(), FRACTION),
        st.one_of(st.none(), st.floats(0.0, 120.0)),
        st.integers(0, 9),
        st.booleans(),
    ),
    max_size=40,
)


class Driver:
    """Plays steps against a policy and keeps a log of all it said. With `nosy`, it reads more often than needed."""

    def __init__(self, policy: Policy, count: int, *, nosy: bool) -> None:
        self.log: list[object] = []
        self._policy, self._count, self._nosy = policy, count, nosy
        self._now = 0.0
        self._next_tick = 0.0
        self._sent = 0

    def play(self, steps: Sequence[Step]) -> None:
        for number, step in enumerate(steps):
            self._pass(step.gap_s)
            self._serve(
                ArenaRequest(number, self._now, self._now + 600.0, 100, 50, step.session, step.idempotent), step
            )

    def _pass(self, seconds: float) -> None:
        until, ticks = self._now + seconds, 0
        while self._next_tick <= until and ticks < 100:
            self._now = max(self._now, self._next_tick)
            probes = list(self._policy.tick(self._now))
            assert len(set(probes)) == len(probes)
            self._valid(*probes)
            self.log.append(("probes", self._now, tuple(probes)))
            for endpoint in probes:
                outcome = Outcome.OK if ticks % 2 else Outcome.SERVER_ERROR
                ttft_s = 0.2 if outcome is Outcome.OK else None
                self._policy.probed(Attempted(endpoint, "p", outcome, ttft_s, 0.0, None, 5, None), self._now)
            warned = sorted(self._policy.warned())
            self._valid(*warned)
            self.log.append(("warned", tuple(warned)))
            self._next_tick += self._policy.tick_s
            ticks += 1
        self._now = until
        self._next_tick = max(self._next_tick, until) if ticks == 100 else self._next_tick

    def _serve(self, request: ArenaRequest, step: Step) -> None:
        tried: list[int] = []
        made: list[Attempted] = []
        while len(made) < _MOST_ATTEMPTS:
            endpoint = self._route(request, tried, step.draw)
            self.log.append(("route", self._now, endpoint))
            if endpoint is None:
                return
            tried.append(endpoint)
            made.append(self._attempt(endpoint, step, len(made)))
            if made[-1].outcome is Outcome.OK:
                return
            wait_s = self._policy.retry(request, tuple(made), self._now, step.draw)
            self.log.append(("retry", wait_s))
            if wait_s is None:
                return
            assert isfinite(wait_s)
            assert wait_s >= 0
            assert made[-1].ttft_s is None, "a stream that has begun is not sent again"
            self._pass(wait_s)

    def _route(self, request: ArenaRequest, tried: list[int], draw: float) -> int | None:
        endpoint = self._policy.route(request, tuple(tried), self._now, draw)
        if self._nosy:
            for other in (0.0, 0.37, 0.999, draw):
                again = self._policy.route(request, tuple(tried), self._now, other)
                self._valid(*(() if again is None else (again,)))
            assert again == endpoint
            self._policy.warned()
        self._valid(*(() if endpoint is None else (endpoint,)))
        return endpoint

    def _attempt(self, endpoint: int, step: Step, made: int) -> Attempted:
        outcome = step.outcomes[min(made, len(step.outcomes) - 1)]
        self._sent += 1
        attempt_id = f"a{self._sent}"
        self._policy.started(endpoint, attempt_id, self._now)
        began = outcome is Outcome.OK or (
            outcome in (Outcome.STALLED, Outcome.TRUNCATED) and step.ttft_share is not None
        )
        ttft_s = step.latency_s * (step.ttft_share or 0.0) if began else None
        started = self._now
        if ttft_s is not None:
            self._pass(ttft_s)
            self._policy.first_token(endpoint, attempt_id, self._now)
        self._pass(max(0.0, started + step.latency_s - self._now))
        retry_after_s = step.retry_after_s if outcome is Outcome.RATE_LIMITED else None
        tokens_per_s = 40.0 if outcome is Outcome.OK else None
        attempted = Attempted(endpoint, attempt_id, outcome, ttft_s, step.latency_s, tokens_per_s, 50, retry_after_s)
        self._policy.finished(attempted, self._now)
        return attempted

    def _valid(self, *indices: int) -> None:
        for index in indices:
            assert isinstance(index, int)
            assert 0 <= index < self._count


def played(name: str, count: int, seed: int, steps: Sequence[Step], *, nosy: bool = False) -> list[object]:
    driver = Driver(make(name, endpoints(count), seed), count, nosy=nosy)
    driver.play(steps)
    return driver.log


@pytest.mark.parametrize("name", NAMES)
@given(count=st.integers(1, 7), seed=st.integers(0, 3), steps=STEPS)
@settings(max_examples=25, deadline=None)
def test_any_story_gets_valid_repeatable_answers_and_reads_change_nothing(
    name: str, count: int, seed: int, steps: list[Step]
) -> None:
    log = played(name, count, seed, steps)
    assert played(name, count, seed, steps) == log, "the same inputs and seed give the same answers"
    assert played(name, count, seed, steps, nosy=True) == log, "reads change nothing"


@pytest.mark.parametrize("name", NAMES)
def test_waits_and_patience_are_finite_and_positive(name: str) -> None:
    policy = make(name, endpoints(3), 0)
    for duration_s in (
        policy.patience_s(request(), (), 0.0),
        policy.stall_timeout_s,
        policy.probe_timeout_s,
        policy.tick_s,
    ):
        assert isfinite(duration_s)
        assert duration_s > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_healthy_pool_is_served_from_and_one_endpoint_alone_always_is(name: str) -> None:
    steps = [Step(0.3, i / 50, (Outcome.OK,), 0.4, 0.5, None, i % 5, True) for i in range(50)]
    for count in (1, 4):
        routes = [entry for entry in played(name, count, 0, steps) if isinstance(entry, tuple) and entry[0] == "route"]
        assert len(routes) == 50
        assert all(entry[2] is not None for entry in routes)
