"""Failover stories of the reflex alone, on a virtual clock: what an operator would see, minute by minute.

Proves F-01 F-02 F-03 F-06 F-07 F-08 F-09 F-11 F-12 F-17 F-20 F-21 for the core; each test bears its id.
"""

import random
from itertools import pairwise

import pytest

from routing.health import Event, State
from routing.outcomes import Outcome
from routing.policy import AttemptPolicy, Policy, ReflexPolicy
from tests.routing_world import Reply, Script, World, always, during, patient, steady

DOWN = always(Reply(0.01, Outcome.CONNECT_ERROR))
BROKEN = always(Reply(0.05, Outcome.SERVER_ERROR))
HANG = always(Reply(float("inf")))


def _answered(world: World, start: float, end: float) -> float:
    served = world.between(start, end)
    assert served, "a story without requests proves nothing"
    return sum(bool(s.endpoint_id) for s in served) / len(served)


def _share(world: World, name: str, start: float, end: float) -> float:
    served = world.between(start, end)
    assert served, "a story without requests proves nothing"
    return sum(s.endpoint_id == name for s in served) / len(served)


def test_f01_f02_an_abrupt_outage_moves_traffic_after_a_handful_of_failures_and_loses_no_request() -> None:
    world = World({"primary": during(100, 160, BROKEN), "secondary": steady})
    world.run(200, every_s=0.1)
    ejection = next(t for t in world.transitions if t.to_state is State.EJECTED)
    assert (ejection.endpoint_id, ejection.cause.metric) == ("primary", "failure_evidence")
    assert ejection.cause.value >= ejection.cause.threshold
    assert ejection.time < 102
    assert _answered(world, 0, 200) == 1.0
    assert _share(world, "secondary", 102, 150) > 0.99
    assert max(s.attempts for s in world.between(100, 102)) == 2


@pytest.mark.parametrize("script", [BROKEN, DOWN])
@pytest.mark.parametrize(("per_s", "most"), [(1, 5), (10, 6), (50, 10)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_f03_f12_an_outage_costs_a_handful_of_second_attempts_at_any_rate(
    script: Script, per_s: int, most: int, seed: int
) -> None:
    """Four or five failures prove the outage; besides them, only requests already on their way are hurt."""
    world = World({"primary": during(200, 260, script), "secondary": steady}, seed=seed)
    world.run(230, every_s=1 / per_s)
    ejection = next(t for t in world.transitions if t.to_state is State.EJECTED)
    hurt = [s for s in world.between(199, 230) if s.attempts > 1]
    assert 1 <= len(hurt) <= most
    assert all(s.attempts == 2 for s in hurt)
    assert not [s for s in hurt if s.arrived > ejection.time and s.arrived < ejection.time + 5]
    assert _answered(world, 0, 230) == 1.0


def test_f01_one_refused_connection_is_enough_where_nothing_was_served_for_a_while() -> None:
    world = World({"primary": during(100, 130, DOWN), "secondary": steady})
    world.run(100 - world.engine.policy.reflex.silence_s - 1, every_s=0.5)
    world.run(100, every_s=1e9)
    world.run(130, every_s=0.5)
    ejection = next(t for t in world.transitions if t.to_state is State.EJECTED)
    assert ejection.cause.metric == "connect_error"
    before = [s for s in world.between(100, 104.9) if s.attempts > 1]
    assert len(before) == 1, "only the request that found out needed a second attempt"


def test_f08_traffic_returns_by_probes_and_rising_canary_steps() -> None:
    world = World({"primary": during(100, 130, DOWN), "secondary": steady})
    world.run(400, every_s=0.1)
    assert world.states("primary")[-3:] == [State.PROBING, State.CANARY, State.ACTIVE]
    canary = max(t.time for t in world.transitions if t.event is Event.PROBES_PASSED)
    done = max(t.time for t in world.transitions if t.event is Event.PLAN_DONE)
    failback = world.engine.policy.failback
    assert done - canary >= len(failback.steps) * failback.step_s
    assert 0.03 < _share(world, "primary", canary, canary + failback.step_s) < 0.25
    assert _share(world, "primary", done + 1, 400) == 1.0
    assert _answered(world, 100, 400) == 1.0


def test_f06_a_primary_that_flaps_is_left_alone_for_longer_each_time() -> None:
    def flapping(now: float, rng: random.Random) -> Reply:
        return BROKEN(now, rng) if now > 60 and now % 60 < 30 else steady(now, rng)

    world = World({"primary": flapping, "secondary": steady}, patient())
    world.run(3600, every_s=0.2)
    ejections = [t.time for t in world.transitions if t.to_state is State.EJECTED]
    assert len(ejections) >= 5
    assert len(world.switches()) <= 40, "59 bad spells would be 118 switches without growing ejections"
    early = sum(time < 1200 for time in world.switches())
    late = sum(time >= 2400 for time in world.switches())
    assert late < early
    assert _answered(world, 60, 3600) == 1.0


def test_f06_two_switches_never_come_within_the_return_of_one_endpoint() -> None:
    rng = random.Random(11)
    spells = sorted(rng.uniform(60, 1800) for _ in range(25))

    def intermittent(now: float, rng: random.Random) -> Reply:
        return BROKEN(now, rng) if any(s <= now < s + 8 for s in spells) else steady(now, rng)

    world = World({"primary": intermittent, "secondary": steady})
    world.run(1800, every_s=0.1)
    failback = world.engine.policy.failback
    hold_s = (len(failback.steps) - 1) * failback.step_s
    backs = [(time, after) for (_, before), (time, after) in pairwise(world.leaders) if before != after]
    assert backs
    for (away, to), (back, home) in pairwise(backs):
        if (to, home) == ("secondary", "primary"):
            assert back - away >= hold_s


def test_f17_a_storm_of_429_is_a_quota_and_never_an_ejection() -> None:
    storm = always(Reply(0.02, Outcome.RATE_LIMITED, retry_after_s=10.0))
    world = World({"primary": during(100, 160, storm), "secondary": steady})
    world.run(260, every_s=0.05)
    assert State.EJECTED not in world.states("primary")
    assert _answered(world, 0, 260) == 1.0
    limited = [s for s in world.between(100, 160) if s.attempts > 1]
    assert len(limited) <= 20, "Retry-After is honoured: only the requests around each pause's end meet a 429"
    assert world.states("primary")[-1] is State.ACTIVE
    assert Event.RELIEVED in {t.event for t in world.transitions}
    assert _share(world, "primary", 200, 260) == 1.0


def test_f07_all_rate_limited_tells_when_to_come_back() -> None:
    storm = during(100, 105, always(Reply(0.02, Outcome.RATE_LIMITED, retry_after_s=30.0)))
    world = World({"primary": storm, "secondary": storm})
    world.run(200, every_s=0.1)
    refused = [s for s in world.between(102, 125) if not s.endpoint_id]
    assert refused
    assert all(s.retry_after_s is not None and 0 < s.retry_after_s <= 30 for s in refused)
    assert {s.attempts for s in refused} == {0}, "a limited provider is left in peace"
    assert _answered(world, 140, 200) == 1.0


def test_f09_a_slow_ramp_is_noticed_by_latency_before_anything_fails() -> None:
    def ramp(now: float, rng: random.Random) -> Reply:
        factor = 1 + max(0.0, now - 400) / 10
        return Reply(steady(now, rng).ttft_s * factor)

    world = World({"primary": ramp, "secondary": steady})
    world.run(520, every_s=0.2)
    slow = next(t for t in world.transitions if t.event is Event.SLOW)
    assert (slow.endpoint_id, slow.to_state, slow.cause.metric) == ("primary", State.DEGRADED, "latency_ratio")
    assert 400 < slow.time < 450
    assert slow.cause.value >= slow.cause.threshold == 2.5
    assert 0.02 < _share(world, "primary", 460, 520) < 0.25, "a small share keeps the evidence coming"
    assert _answered(world, 0, 500) == 1.0


def test_f08_thin_traffic_comes_back_by_probes() -> None:
    world = World({"primary": during(600, 700, DOWN), "secondary": steady})
    world.run(1000, every_s=20)
    assert world.states("primary")[-1] is State.ACTIVE
    done = max(t.time for t in world.transitions if t.event is Event.PLAN_DONE)
    assert done < 1000
    live = len(world.between(700, done))
    needed = 5 * len(world.engine.policy.failback.steps)
    assert live < needed <= world.probes["primary"], "live traffic alone could not have proven the return"
    assert _answered(world, 0, 1000) == 1.0


def test_f12_a_hang_is_noticed_before_its_timeout() -> None:
    world = World({"primary": during(300, 360, HANG), "secondary": steady})
    world.run(330, every_s=0.2)
    timeout_s = world.engine.policy.attempts.ttft_timeout_s
    first = next(t for t in world.transitions if t.endpoint_id == "primary" and t.time > 300)
    assert (first.event, first.cause.metric) == (Event.SLOW, "waiting_s")
    assert first.time < 304 < 300 + timeout_s
    assert _share(world, "secondary", 304, 309) > 0.8


def test_f07_f20_with_all_down_requests_still_go_out_and_all_recover() -> None:
    world = World({"primary": during(100, 200, BROKEN), "secondary": during(100, 200, BROKEN)})
    world.run(700, every_s=0.2)
    assert any(d.panic for d in world.decisions)
    assert all(d.chosen for d in world.decisions if d.panic and not d.request.excluded)
    assert _answered(world, 105, 199) < 0.05
    assert _answered(world, 200.5, 700) > 0.99, "panic serves again as soon as a provider does"
    assert world.states("primary")[-1] is State.ACTIVE


def test_f06_a_premature_recovery_lengthens_the_next_ejection_up_to_the_limit() -> None:
    def mostly_broken(now: float, rng: random.Random) -> Reply:
        return Reply(0.05, Outcome.SERVER_ERROR) if now > 100 and rng.random() < 0.7 else steady(now, rng)

    policy = Policy(reflex=ReflexPolicy(ejection_s=5.0, max_ejection_s=40.0))
    world = World({"primary": mostly_broken, "secondary": steady}, policy)
    world.run(1000, every_s=0.1)
    lengths = [t.cause.threshold for t in world.transitions if t.event is Event.EJECTION_OVER]
    assert lengths == pytest.approx([min(40, 5 * 2**i) for i in range(len(lengths))])
    assert len(lengths) > 5
    assert _answered(world, 100, 1000) == 1.0


def test_f11_f21_a_drain_under_load_loses_nothing_and_a_restore_brings_all_back() -> None:
    world = World({"primary": always(Reply(3.0)), "secondary": steady})
    world.run(100, every_s=0.05)
    in_flight = world.engine.window_of("primary").in_flight
    world.engine.drain("primary", "kim: maintenance", world.now)
    world.run(200, every_s=0.05)
    assert in_flight > 10
    assert sum(s.endpoint_id == "primary" and s.time >= 100 for s in world.served) == in_flight
    assert _share(world, "secondary", 100, 200) == 1.0
    world.engine.restore("primary", "kim: done", world.now)
    world.run(300, every_s=0.05)
    assert _answered(world, 0, 290) == 1.0
    assert all(s.attempts == 1 for s in world.served)
    assert world.states("primary")[-1] is State.ACTIVE
    assert _share(world, "primary", 290, 300) == 1.0


def test_no_attempt_is_sent_or_waited_for_beyond_its_deadline() -> None:
    policy = Policy(attempts=AttemptPolicy(deadline_s=4.0, reserve_s=1.5, ttft_timeout_s=3.0))

    def often_stuck(now: float, rng: random.Random) -> Reply:
        del now
        return Reply(rng.choice([0.2, 2.0, float("inf")]), rng.choice([Outcome.OK, Outcome.SERVER_ERROR]))

    world = World({"a": often_stuck, "b": often_stuck, "c": often_stuck}, policy)
    world.run(600, every_s=0.5)
    assert all(time < budget.deadline for time, budget in world.sent)
    assert max(s.time - s.arrived for s in world.served) <= 4.0 + 1e-9
    assert max(s.attempts for s in world.served) == 3


def test_the_same_seed_tells_the_same_story() -> None:
    def story(seed: int) -> World:
        world = World({"primary": during(50, 80, DOWN), "secondary": steady}, seed=seed)
        world.run(200, every_s=0.3)
        return world

    one, again, other = story(1), story(1), story(2)
    assert (one.transitions, one.served) == (again.transitions, again.served)
    assert one.served != other.served
