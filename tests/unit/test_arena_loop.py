"""The closed loop: what a policy hears and when, what is recorded, and that every policy meets the same luck."""

# ruff: noqa: ARG002 - a Policy takes what the protocol gives it

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from routing.outcomes import Outcome
from sim.arena.fate import Fates
from sim.arena.incidents import ArenaKind
from sim.arena.log import Log
from sim.arena.loop import run
from sim.arena.oracle import Oracle
from sim.arena.policy import ArenaRequest, Attempted, Limits, Policy
from sim.arena.referee import ArenaInvariantError
from sim.arena.scenario import Arrivals, Endpoint, Scenario, Scripted
from sim.arena.truth import World, make_world
from sim.policies import NAMES, make

ENDPOINTS = tuple(
    Endpoint(
        id=name, provider=f"provider-{name}", region=region, ttft_ms=ttft_ms, usd_per_mtok=price, error_rate=0.0,
        limited_rate=0.0, ttft_sigma=0.0,
    )
    for name, region, ttft_ms, price in (("a", "eu", 300, 1), ("b", "us", 400, 2))
)  # fmt: skip


def world_of(*incidents: Scripted, seed: int = 1, deadline_s: float = 60.0, duration_s: int = 300) -> World:
    scenario = Scenario(
        name="t", description="", duration_s=duration_s, arrivals=Arrivals(rate_per_s=3), endpoints=ENDPOINTS,
        incidents=incidents, deadline_s=deadline_s,
    )  # fmt: skip
    return make_world(scenario, seed)


class Listener(Policy):
    """Sends each attempt to the next endpoint, retries `retries` times after `backoff_s`, and notes what it hears."""

    name = "listener"
    stall_timeout_s = 5.0
    probe_timeout_s = 2.0
    tick_s = 10.0
    limits = Limits()

    def __init__(self, *, retries: int = 1, backoff_s: float = 0.0, attempt_timeout_s: float = 10.0) -> None:
        self.attempt_timeout_s = attempt_timeout_s
        self.retries = retries
        self.backoff_s = backoff_s
        self.heard: list[tuple[float, str, str]] = []
        self.ends: list[Attempted] = []
        self.probes: list[Attempted] = []
        self.warning: dict[float, Collection[int]] = {}
        self.now = 0.0

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        assert 0 <= draw < 1
        assert now >= request.time
        return len(tried) % 2

    def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
        return self.attempt_timeout_s

    def retry(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
        assert made[-1].outcome is not Outcome.OK
        return self.backoff_s if len(made) <= self.retries else None

    def started(self, endpoint: int, attempt_id: str, now: float) -> None:
        self.heard.append((now, "started", attempt_id))

    def first_token(self, endpoint: int, attempt_id: str, now: float) -> None:
        self.heard.append((now, "first_token", attempt_id))

    def finished(self, attempted: Attempted, now: float) -> None:
        self.heard.append((now, "finished", attempted.attempt_id))
        self.ends.append(attempted)

    def tick(self, now: float) -> Sequence[int]:
        self.now = now
        return [1] if now % 50 == 0 else []

    def probed(self, attempted: Attempted, now: float) -> None:
        self.probes.append(attempted)

    def warned(self) -> Collection[int]:
        return self.warning.get(self.now, ())


def whole(kind: ArenaKind, *, probability: float | None = None, speed: float | None = None) -> Scripted:
    return Scripted(kind=kind, at_s=0, hold_s=290, endpoint="a", probability=probability, speed=speed)


REGIONAL = Scripted(kind=ArenaKind.REGIONAL, at_s=0, lag_s=0, hold_s=290, region="eu")


def test_a_quiet_world_answers_every_request_at_once() -> None:
    world, policy = world_of(), Listener()
    log = run(world, policy, check=True)
    assert len(log.first) == len(world.workload.arrival_s) > 800
    assert not log.failed.any()
    assert set(log.attempts) == {1}
    assert log.ttft_s == pytest.approx(np.full(len(log.first), 0.3))
    tokens = world.workload.input_tokens + world.workload.output_tokens
    assert log.cost_usd == pytest.approx(tokens / 1e6)


def test_time_never_goes_back_and_an_attempt_is_heard_in_order() -> None:
    policy = Listener()
    run(world_of(whole(ArenaKind.ABRUPT, probability=0.5)), policy, check=True)
    times = [time for time, _, _ in policy.heard]
    assert times == sorted(times)
    for end in policy.ends[:50]:
        heard = [what for _, what, attempt in policy.heard if attempt == end.attempt_id]
        expected = ["started", "first_token", "finished"] if end.ttft_s is not None else ["started", "finished"]
        assert heard == expected


def test_a_retry_counts_the_time_of_the_failure_and_the_backoff() -> None:
    policy = Listener(backoff_s=0.7)
    log = run(world_of(whole(ArenaKind.ABRUPT)), policy, check=True)
    early = log.arrival_s < 280
    assert set(log.attempts[early]) == {2}
    assert set(log.first[early]) == {0}
    # 0.3 × 300 ms until the 5xx, the backoff, and the second endpoint's 400 ms.
    assert log.ttft_s[early] == pytest.approx(0.09 + 0.7 + 0.4)
    assert not log.failed.any()


@pytest.mark.parametrize(
    ("incident", "outcome", "latency_s", "streamed"),
    [
        (whole(ArenaKind.HANG, probability=1), Outcome.TIMEOUT, 10.0, False),
        (whole(ArenaKind.ABRUPT), Outcome.SERVER_ERROR, 0.09, False),
        (REGIONAL, Outcome.CONNECT_ERROR, 0.005, False),
        (whole(ArenaKind.STALL, probability=1), Outcome.STALLED, None, True),
        (whole(ArenaKind.CRAWL, speed=0.001), Outcome.STALLED, 5.3, True),
    ],
)  # fmt: skip
def test_each_trouble_ends_in_its_outcome(
    incident: Scripted, outcome: Outcome, latency_s: float | None, streamed: bool
) -> None:
    policy = Listener(retries=0)
    log = run(world_of(incident), policy, check=True)
    ends = policy.ends[:500]
    assert {end.outcome for end in ends} == {outcome}
    assert all((end.ttft_s is not None) == streamed for end in ends)
    assert latency_s is None or [end.latency_s for end in ends] == pytest.approx([latency_s] * 500)
    assert log.failed[:500].all()


def test_a_request_whose_stream_began_is_not_sent_again() -> None:
    policy = Listener(retries=5)
    log = run(world_of(whole(ArenaKind.STALL, probability=1)), policy, check=True)
    early = log.arrival_s < 280
    assert set(log.attempts[early]) == {1}
    assert log.failed[early].all()
    assert not np.isnan(log.ttft_s[early]).any()


def test_a_rate_limit_says_when_to_come_back() -> None:
    policy = Listener(retries=0)
    run(world_of(Scripted(kind=ArenaKind.RATE_LIMIT, at_s=0, endpoint="a", retry_after_s=7, hold_s=100)), policy)
    limited = [end for end in policy.ends if end.outcome is Outcome.RATE_LIMITED]
    assert len(limited) > 50
    assert {end.retry_after_s for end in limited} == {7}
    assert {end.retry_after_s for end in policy.ends if end.outcome is not Outcome.RATE_LIMITED} == {None}


def test_nothing_is_sent_after_the_deadline_and_a_crawling_stream_ends_with_it() -> None:
    policy = Listener(retries=10**6, backoff_s=0.4)
    log = run(world_of(whole(ArenaKind.HANG, probability=1), deadline_s=4.0), policy, check=True)
    sent = {attempt: time for time, what, attempt in policy.heard if what == "started"}
    due = {number: float(arrival) + 4.0 for number, arrival in enumerate(log.arrival_s)}
    assert all(time < due[int(attempt.split(".")[0])] for attempt, time in sent.items())
    assert set(log.attempts[log.arrival_s < 280]) == {1}
    crawling = Listener(retries=0)
    run(world_of(whole(ArenaKind.CRAWL, speed=0.01), deadline_s=20.0), crawling, check=True)
    late = [end for end in crawling.ends if end.outcome is Outcome.TIMEOUT]
    assert late
    assert all(end.latency_s == pytest.approx(20.0) and end.ttft_s is not None for end in late)


def test_probes_are_sent_when_asked_for_and_are_no_requests() -> None:
    world, policy = world_of(), Listener()
    log = run(world, policy, check=True)
    assert log.probe_s.tolist() == [0.0, 50.0, 100.0, 150.0, 200.0, 250.0]
    assert [probe.outcome for probe in policy.probes] == [Outcome.OK] * 6
    assert log.probe_cost_usd == pytest.approx(np.full(6, 15 * 2 / 1e6))
    assert len(log.first) == len(world.workload.arrival_s)


@pytest.mark.parametrize(
    ("incident", "latency_s"), [(whole(ArenaKind.HANG, probability=1), 2.0), (whole(ArenaKind.CRAWL, speed=0.01), 2.0)]
)
def test_a_probe_ends_with_its_own_timeout_whatever_it_waits_for(incident: Scripted, latency_s: float) -> None:
    """F-18: health checks have a timeout of their own, 5 s by default, and requests another."""

    class Checking(Listener):
        def tick(self, now: float) -> Sequence[int]:
            return [0]

    policy = Checking(attempt_timeout_s=40.0)
    run(world_of(incident), policy, check=True)
    assert {probe.outcome for probe in policy.probes[:20]} == {Outcome.TIMEOUT}
    assert {probe.latency_s for probe in policy.probes[:20]} == {latency_s}


def test_a_policy_knows_its_caller_s_deadline_and_divides_it_among_attempts() -> None:
    """F-02: the first of two attempts leaves the second half of the time."""

    class Halving(Listener):
        def patience_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float:
            return (request.deadline - now) / (2 if not tried else 1)

    policy = Halving()
    log = run(world_of(whole(ArenaKind.HANG, probability=1), deadline_s=6.0), policy, check=True)
    early = log.arrival_s < 280
    assert set(log.attempts[early]) == {2}
    assert log.ttft_s[early] == pytest.approx(3.0 + 0.4)


def test_warnings_are_recorded_when_they_change() -> None:
    policy = Listener()
    policy.warning = {20.0: (1,), 30.0: [0, 1], 40.0: {0}}
    log = run(world_of(), policy)
    changes = list(zip(log.warned_s.tolist(), log.warned_endpoint.tolist(), log.warned_on.tolist(), strict=True))
    assert changes == [(20, 1, True), (30, 0, True), (40, 1, False), (50, 0, False)]


def test_the_policy_that_refuses_fails_the_request() -> None:
    class Refusing(Listener):
        def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
            return None

    log = run(world_of(), Refusing(), check=True)
    assert log.failed.all()
    assert set(log.first) == {-1}
    assert set(log.attempts) == {0}


class Lost(Listener):
    """Routes to an endpoint that does not exist."""

    def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        return 2


@pytest.mark.parametrize(
    ("policy", "message"), [(Listener(backoff_s=math.nan), "is to wait"), (Lost(), "does not exist")]
)
def test_check_catches_a_policy_that_breaks_the_rules(policy: Listener, message: str) -> None:
    with pytest.raises(ArenaInvariantError, match=message):
        run(world_of(whole(ArenaKind.ABRUPT)), policy, check=True)


class Hedging(Listener):
    """Hedges an attempt that has waited `after_s`, at the other endpoint."""

    def __init__(self, after_s: float, *, retries: int = 0) -> None:
        super().__init__(retries=retries)
        self.after_s = after_s

    def hedge_after_s(self, request: ArenaRequest, tried: Sequence[int], now: float) -> float | None:
        return self.after_s

    def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
        assert 0 <= draw < 1
        return 1 - tried[-1]


def test_a_hedge_answers_for_an_attempt_that_hangs() -> None:
    world, policy = world_of(whole(ArenaKind.HANG, probability=1)), Hedging(1.0)
    log = run(world, policy, check=True)
    early = log.arrival_s < 280
    assert log.hedged[early].all()
    assert set(log.attempts[early]) == {2}
    assert log.ttft_s[early] == pytest.approx(1.0 + 0.4)
    assert not log.failed.any()
    lost = [end for end in policy.ends if end.outcome is Outcome.CANCELLED]
    assert len(lost) == log.hedged.sum()
    assert {end.endpoint for end in lost} == {0}
    assert [end.latency_s for end in lost] == pytest.approx([1.4] * len(lost))
    read, written = world.workload.input_tokens, world.workload.output_tokens
    paid_usd = (read * 1 + (read + written) * 2) / 1e6
    assert log.cost_usd[early] == pytest.approx(paid_usd[early]), "the loser has read the prompt"


def test_the_first_attempt_may_win_too_and_its_hedge_is_called_off() -> None:
    policy = Hedging(0.1)
    log = run(world_of(), policy, check=True)
    assert log.hedged.all()
    assert set(log.attempts) == {2}
    assert log.ttft_s == pytest.approx(np.full(len(log.first), 0.3))
    lost = [end for end in policy.ends if end.outcome is Outcome.CANCELLED]
    assert {end.endpoint for end in lost} == {1}
    assert [end.latency_s for end in lost] == pytest.approx([0.2] * len(lost))


def test_who_has_answered_or_failed_by_then_is_not_hedged() -> None:
    for incidents, attempts in (((), 1), ((whole(ArenaKind.ABRUPT),), 2)):
        log = run(world_of(*incidents), Hedging(0.5, retries=1), check=True)
        assert not log.hedged.any()
        assert set(log.attempts[log.arrival_s < 280]) == {attempts}


def test_a_hedge_that_is_due_with_the_first_token_is_not_sent() -> None:
    log = run(world_of(), Hedging(math.nextafter(0.3, 0.0)), check=True)
    assert not log.failed.any()
    assert log.hedged.sum() < 5, "only where the sum with the arrival tells the two apart"


def test_a_failure_beside_another_attempt_waits_for_it_and_only_then_is_retried() -> None:
    """The hedge fails at once; the hanging attempt goes on until its timeout, and the retry is the third attempt."""
    policy = Hedging(1.0, retries=2)
    both = (whole(ArenaKind.HANG, probability=1), replace(whole(ArenaKind.ABRUPT), endpoint="b"))
    log = run(world_of(*both), policy, check=True)
    early = log.arrival_s < 250
    assert set(log.attempts[early]) == {3}
    assert log.failed[early].all()
    ended = [(end.endpoint, end.outcome) for end in policy.ends if end.attempt_id.startswith("0.")]
    assert ended == [(1, Outcome.SERVER_ERROR), (0, Outcome.TIMEOUT), (0, Outcome.TIMEOUT)]


def test_a_policy_may_decline_a_hedge_when_its_time_comes() -> None:
    class Declining(Hedging):
        asked = 0

        def hedge(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
            self.asked += 1
            return None

    declining = Declining(1.0)
    log = run(world_of(whole(ArenaKind.HANG, probability=1)), declining, check=True)
    assert declining.asked == np.isnan(log.ttft_s).sum() > 700
    assert not log.hedged.any()
    assert set(log.attempts) == {1}


def test_a_request_that_is_refused_may_wait_for_its_turn() -> None:
    class Pausing(Listener):
        def route(self, request: ArenaRequest, tried: Sequence[int], now: float, draw: float) -> int | None:
            return None if now < request.time + 2.0 else 0

        def wait_s(self, request: ArenaRequest, made: Sequence[Attempted], now: float, draw: float) -> float | None:
            return 1.5

    log = run(world_of(), Pausing(), check=True)
    assert not log.failed.any()
    assert log.ttft_s == pytest.approx(np.full(len(log.first), 3.3))
    assert set(log.attempts) == {1}
    late = run(world_of(deadline_s=1.0), Pausing(), check=True)
    assert late.failed.all(), "nobody waits beyond the deadline"


def test_two_policies_meet_the_same_luck() -> None:
    noisy = tuple(replace(endpoint, error_rate=0.05, ttft_sigma=0.4) for endpoint in ENDPOINTS)
    world = make_world(replace(world_of().scenario, endpoints=noisy), 4)
    one, other = run(world, Listener(retries=0)), run(world, Listener(retries=2, backoff_s=0.5))
    # What the first attempts met is the same, whatever was retried in between.
    same = other.attempts == 1
    assert same.sum() > 700
    assert np.array_equal(one.ttft_s[same], other.ttft_s[same])
    assert (one.failed >= other.failed).all()


@pytest.mark.parametrize("name", ["oracle", *NAMES])
def test_the_same_run_twice_is_the_same_to_the_byte(name: str) -> None:
    world = world_of(Scripted(kind=ArenaKind.FLAPPING, at_s=60, endpoint="a"))

    def play() -> Log:
        policy = Oracle(world) if name == "oracle" else make(name, world.endpoints, world.seed)
        return run(world, policy, check=True)

    one, other = play(), play()
    for field in Log.__slots__:
        first, second = getattr(one, field), getattr(other, field)
        assert first.tobytes() == second.tobytes() if isinstance(first, np.ndarray) else first == second


def test_the_oracle_leaves_with_the_trouble_and_comes_back_with_its_end() -> None:
    outage = Scripted(kind=ArenaKind.ABRUPT, at_s=100, hold_s=50, endpoint="a")
    world = world_of(outage)
    log = run(world, Oracle(world), check=True)
    out = (log.arrival_s >= 100) & (log.arrival_s < 150)
    assert np.array_equal(log.first == 1, out)
    assert not log.failed.any()


def test_a_slow_answer_is_cut_by_the_timeout() -> None:
    fates = Fates(world_of())
    draws = [0.9, 0.0, 0.0, 0.5]
    patient = fates.of(0, 10.0, 60, draws, wait_s=1.0, stall_s=5.0, left_s=60.0)
    hasty = fates.of(0, 10.0, 60, draws, wait_s=0.2, stall_s=5.0, left_s=60.0)
    assert (patient.outcome, patient.ttft_s) == (Outcome.OK, 0.3)
    assert patient.latency_s == pytest.approx(1.3)
    assert (hasty.outcome, hasty.ttft_s, hasty.latency_s) == (Outcome.TIMEOUT, None, 0.2)
