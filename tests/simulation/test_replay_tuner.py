"""The tuner on worlds whose answer is known (F-16)."""

from dataclasses import replace

import pytest

from routing.policy import Policy, ReflexPolicy
from scoring.thresholds import Step, step_to
from sim.arena.scenario import Scenario, parse_scenario
from sim.replay.play import Simulated
from sim.replay.tuner import Aim, Hours, Tuning, tune

SCENARIO = """
name: slow
description: The primary becomes six times as slow for four minutes.
duration_s: 480
arrivals: {rate_per_s: 2}
endpoints:
  - {id: primary, provider: alpha, region: eu-west, ttft_ms: 400, ttft_sigma: 0.2, usd_per_mtok: 2.0}
  - {id: second, provider: beta, region: eu-west, ttft_ms: 500, ttft_sigma: 0.2, usd_per_mtok: 3.0}
incidents:
  - {kind: queue, at_s: 120, endpoint: primary, climb_s: 40, hold_s: 200, peak: 6, probability: 0.02}
"""
# Blind to slowness: what it costs is known, and so is the step that ends it.
BLUNT = Policy(reflex=ReflexPolicy(latency_ratio=60.0, hang_ratio=200.0))
SHARPER = step_to(BLUNT, None, "reflex.latency_ratio", 2.5)
NO_BETTER = step_to(BLUNT, None, "failback.min_hold_s", 20.0)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return parse_scenario(SCENARIO)


def tuned(scenario: Scenario, aim: Aim, steps: list[Step], hours: int = 4, policy: Policy = BLUNT) -> Tuning:
    worlds = tuple(Simulated(replace(scenario, name=f"day {day}", duration_s=480 + day)) for day in range(hours))
    simulated = Hours((Simulated(scenario),), ("simulated",))
    return tune(Hours(worlds, ("all",) * hours), simulated, (7,), policy, None, aim, steps=steps, jobs=1)


def test_a_better_step_is_found_certified_and_told_with_its_figures(scenario: Scenario) -> None:
    """F-16: the budget is wide here, so that hours can certify it; the gain is beyond chance."""
    found = tuned(scenario, Aim(budget_per_day=500.0), [SHARPER, NO_BETTER])
    assert found.step == SHARPER, found.reason
    trial = found.chosen
    assert trial is not None
    before, after = found.now["bad_per_1k"], trial.figures["bad_per_1k"]
    assert before is not None
    assert after is not None
    assert after < before
    assert trial.gain.low is not None
    assert trial.gain.low > 0
    assert trial.count.upper_bound <= 500.0
    other = next(one for one in found.trials if one.step == NO_BETTER)
    assert "chance" in other.objection


def test_the_same_gain_is_refused_while_the_budget_is_not_certified(scenario: Scenario) -> None:
    """F-16: an hour of history cannot show one false failover a day, and the tuner says how much could."""
    found = tuned(scenario, Aim(budget_per_day=1.0), [SHARPER])
    assert found.step is None
    assert "at least 3.0 are needed" in found.reason
    assert "at least 72 hours to replay" in found.reason
    assert found.trials == ()


def test_many_steps_are_screened_on_hours_that_do_not_judge_them(scenario: Scenario) -> None:
    steps = [SHARPER, NO_BETTER, *(step_to(BLUNT, None, "reflex.latency_ratio", ratio) for ratio in (50.0, 55.0))]
    found = tuned(scenario, Aim(budget_per_day=1e4), steps, hours=5)
    assert set(found.screened) == {"current", *map(str, steps)}
    assert len(found.trials) <= 3
    assert found.now_count.provider_days == pytest.approx(3 * 480 / 86_400, rel=0.01)


def test_nothing_is_proposed_that_makes_simulated_worlds_worse(scenario: Scenario) -> None:
    """F-16: a gain on recorded hours that many kinds of trouble would pay for is refused."""
    calm = replace(scenario, incidents=())
    worlds = tuple(Simulated(replace(calm, name=f"day {day}", duration_s=480 + day)) for day in range(4))
    slow = tuple(Simulated(replace(scenario, name=f"slow {day}", duration_s=480 + day)) for day in range(4))
    sharp = Policy()
    blunter = step_to(sharp, None, "reflex.latency_ratio", 60.0)
    aim = Aim(budget_per_day=500.0)
    found = tune(
        Hours(worlds, ("all",) * 4), Hours(slow, ("all",) * 4), (7,), sharp, None, aim, steps=[blunter], jobs=1
    )
    assert found.step is None
    assert found.trials[0].simulated_gain.high is not None
    assert found.trials[0].simulated_gain.high < 0
