"""How traffic comes back after full, partial and intermittent recovery, by each kind of return (F-15)."""

import random
from itertools import pairwise

import pytest

from routing.health import Event, State
from routing.outcomes import Outcome
from routing.policy import FailbackKind, FailbackPolicy, Policy
from tests.routing_world import Reply, Script, World, always, during, patient, steady

FAILED = Reply(0.05, Outcome.SERVER_ERROR)
BROKEN = always(FAILED)
START, END = 100.0, 200.0


def _failing(rate: float) -> Script:
    """Return a script that fails a share of its attempts."""
    return lambda now, rng: FAILED if rng.random() < rate else steady(now, rng)


def _well_a_third_of_each_minute(now: float, rng: random.Random) -> Reply:
    return steady(now, rng) if now % 60 < 20 else FAILED


def _story(
    script: Script,
    kind: FailbackKind,
    until: float,
    every_s: float = 0.1,
    seed: int = 7,
    policy: Policy | None = None,
) -> World:
    """Tell a primary's story under `policy`, by default the shipped one with returns of `kind`."""
    policy = policy or Policy(failback=FailbackPolicy(kind, ramp_step=0.1))
    world = World({"primary": script, "secondary": steady}, policy, seed)
    world.run(until, every_s)
    return world


def _share(world: World, start: float, end: float) -> float:
    served = world.between(start, end)
    assert served, "a story without requests proves nothing"
    return sum(s.endpoint_id == "primary" for s in served) / len(served)


def _back(world: World) -> list[float]:
    """When the primary had all its traffic again."""
    return [t.time for t in world.transitions if t.event is Event.PLAN_DONE]


@pytest.mark.parametrize("kind", FailbackKind)
def test_f15_after_a_full_recovery_all_traffic_is_back_within_minutes_and_stays(kind: FailbackKind) -> None:
    world = _story(during(START, END, BROKEN), kind, until=END + 300)
    assert [time > END for time in _back(world)] == [True], "one return, and none before the recovery"
    plan = world.engine.policy.failback
    assert _back(world)[0] - END < 30 + len(plan.shares()) * (plan.step_s + 1)
    assert _share(world, _back(world)[0] + 1, END + 300) == 1.0
    assert all(s.endpoint_id for s in world.served)


def test_f15_shares_over_time_follow_the_kind() -> None:
    shares = {}
    for kind in FailbackKind:
        world = _story(during(START, END, BROKEN), kind, until=END + 120, every_s=0.02)
        begun = next(t.time for t in world.transitions if t.event is Event.PROBES_PASSED and t.time > END)
        step_s = world.engine.policy.failback.step_s
        shares[kind] = [_share(world, begun + i * step_s + 1, begun + (i + 1) * step_s) for i in range(4)]
    assert shares[FailbackKind.CANARY] == pytest.approx([0.1, 0.3, 1.0, 1.0], abs=0.1)
    assert shares[FailbackKind.GRADUAL] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.1)
    assert shares[FailbackKind.BLUE_GREEN] == [1.0] * 4


@pytest.mark.parametrize("kind", [FailbackKind.CANARY, FailbackKind.GRADUAL])
@pytest.mark.parametrize("rate", [0.5, 0.7])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_f15_a_partial_recovery_is_no_recovery(kind: FailbackKind, rate: float, seed: int) -> None:
    """Some probes pass, some requests succeed: the steps do not, and callers never notice."""
    partly = during(END, END + 600, _failing(rate))
    world = _story(during(START, END, BROKEN, partly), kind, until=END + 600, seed=seed)
    assert any(t.event is Event.PROBES_PASSED for t in world.transitions), "it was given chances"
    assert _back(world) == []
    assert _share(world, END, END + 600) < 0.05
    assert all(s.endpoint_id for s in world.served)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_f15_blue_green_asks_a_partly_recovered_primary_seldom_and_gives_up_in_seconds(seed: int) -> None:
    """Five probes in a row pass by luck now and then; the switch they earn must be undone at once."""
    partly = during(END, END + 600, _failing(0.5))
    world = _story(during(START, END, BROKEN, partly), FailbackKind.BLUE_GREEN, until=END + 600, seed=seed)
    assert _share(world, END, END + 600) < 0.05
    for back in _back(world):
        left = next(t.time for t in world.transitions if t.to_state is State.EJECTED and t.time > back)
        assert left - back < 5
    assert all(s.endpoint_id for s in world.served)


@pytest.mark.parametrize("kind", FailbackKind)
def test_f15_f06_an_intermittent_recovery_is_tried_less_and_less(kind: FailbackKind) -> None:
    """Well for 20 s of every 60 s, long enough to pass probes: each relapse doubles the next hold."""
    policy = patient(kind, ramp_step=0.1)
    world = _story(_well_a_third_of_each_minute, kind, until=3600, every_s=0.2, policy=policy)
    ejections = [t.time for t in world.transitions if t.to_state is State.EJECTED]
    gaps = [later - earlier for earlier, later in pairwise(ejections)]
    assert len(ejections) <= 20, "60 bad spells would be 60 ejections"
    assert max(gaps[:3]) < 150, gaps
    assert min(gaps[-3:]) > 200, gaps
    hurt = sum(s.attempts > 1 for s in world.served)
    assert hurt / len(world.served) < 0.02
    assert all(s.endpoint_id for s in world.served)


@pytest.mark.parametrize("kind", FailbackKind)
def test_f15_after_many_relapses_a_full_recovery_waits_for_the_longest_hold_and_no_longer(kind: FailbackKind) -> None:
    """The shipped policy's bound: however often it relapsed, a provider that is well again is tried within a minute."""
    ill_until = 1800.0
    script = during(ill_until, 2400.0, steady, outside=_well_a_third_of_each_minute)
    world = _story(script, kind, until=2400.0, every_s=0.2)
    policy = world.engine.policy
    holds = [t.cause.threshold for t in world.transitions if t.event is Event.EJECTION_OVER]
    assert max(holds) == pytest.approx(policy.reflex.max_ejection_s)
    assert policy.reflex.max_ejection_s == 60.0
    (back,) = [time for time in _back(world) if time > ill_until]
    probes_s = policy.failback.probes_needed() * policy.failback.max_probe_interval_s
    steps_s = len(policy.failback.shares()) * (policy.failback.step_s + 1)
    assert back - ill_until < policy.reflex.max_ejection_s + probes_s + steps_s
    assert _share(world, back + 1, 2400.0) == 1.0
    assert all(s.endpoint_id for s in world.served)


@pytest.mark.parametrize("kind", FailbackKind)
@pytest.mark.parametrize("seed", [11, 12])
def test_f06_two_switches_never_come_within_the_hold(kind: FailbackKind, seed: int) -> None:
    rng = random.Random(seed)
    spells = [rng.uniform(60, 1800) for _ in range(25)]
    world = _story(
        lambda now, rng: FAILED if any(s <= now < s + 8 for s in spells) else steady(now, rng), kind, until=1800
    )
    policy = world.engine.policy
    majority = sum(share < 0.5 for share in policy.failback.shares())
    hold_s = policy.reflex.ejection_s + majority * policy.failback.step_s
    changes = [(time, after) for (_, before), (time, after) in pairwise(world.leaders) if before != after]
    assert len(changes) >= 4
    for (away, to), (back, home) in pairwise(changes):
        if (to, home) == ("secondary", "primary"):
            assert back - away >= hold_s
