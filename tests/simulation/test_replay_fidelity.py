"""A replay of recorded history against the truth that made it (F-16): the world is known here, the replay sees records.

One hour with an abrupt outage, a queue and a rate limit, served by the reflex policy. What the record shows must tell,
nearly as the true world does, how *other* policies would have fared.
"""

from dataclasses import replace

import numpy as np
import pytest

from sim.arena.loop import run
from sim.arena.scenario import parse_scenario
from sim.arena.truth import World, make_world
from sim.policies import make
from sim.replay.backtest import Hourly, backtest, read_hours
from sim.replay.play import Player
from sim.scorecard.definitions import Evidence, measure
from tests.replayed_history import MODEL, T0, recorded_history

SCENARIO = """
name: known
description: An hour with three kinds of trouble.
duration_s: 3600
arrivals: {rate_per_s: 4}
endpoints:
  - {id: primary, provider: alpha, region: eu-west, ttft_ms: 400, usd_per_mtok: 2.0}
  - {id: second, provider: beta, region: eu-west, ttft_ms: 500, usd_per_mtok: 3.0}
incidents:
  - {kind: abrupt, at_s: 900, endpoint: primary, hold_s: 120}
  - {kind: queue, at_s: 1800, endpoint: primary}
  - {kind: rate_limit, at_s: 2800, endpoint: primary}
"""
POLICIES = ("static", "envoy", "tuned-breaker", "routecast-reflex")


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(parse_scenario(SCENARIO), 4)


@pytest.fixture(scope="module")
def hourly(world: World, tmp_path_factory: pytest.TempPathFactory) -> Hourly:
    connection = recorded_history(world, tmp_path_factory.mktemp("history"))
    return read_hours(connection, MODEL, T0, T0 + 3600, order=("primary", "second"), most_hours=4, deadline_s=60.0)


def test_the_record_shows_the_incidents_when_they_were(world: World, hourly: Hourly) -> None:
    """F-16: each true incident of the primary is found, begun not before it and not long after."""
    found = [one for one in hourly.recorded.incidents if one.endpoint == 0]
    for trouble in world.troubles:
        near = [one for one in found if one.begin - T0 < trouble.end_s and one.end - T0 > trouble.onset_s]
        assert near, trouble
        assert -60 < near[0].begin - T0 - trouble.onset_s < 60


def test_failure_rates_are_found_again_second_by_second(world: World, hourly: Hourly) -> None:
    """F-16: no precursor before the abrupt outage, and its end is found by probes alone."""
    drawn = np.mean([hourly.chronicles[0].world(seed).truth.failing[0, :, -1] for seed in range(10)], axis=0)
    true = world.truth.failing[0, :, -1]
    assert drawn[800:899].max() < 0.1
    assert drawn[902:1000].min() > 0.8
    assert np.abs(drawn[:3600] - true[:3600]).mean() < 0.03


@pytest.fixture(scope="module")
def bad(world: World, hourly: Hourly) -> dict[str, tuple[float, float]]:
    """Bad requests per thousand by policy: in the true world, and in the replay; means over draws of luck."""
    players = [Player(policy, base=policy) for policy in POLICIES]
    replayed = backtest(hourly, players, seeds=range(2), jobs=1).figures
    found = {}
    for policy in POLICIES:
        lucks = [replace(world, seed=seed) for seed in range(2)]
        logs = [run(luck, make(policy, luck.endpoints, luck.seed)) for luck in lucks]
        true = [measure(Evidence(log, world.troubles, world.normal_ttft_s))["bad_per_1k"] or 0.0 for log in logs]
        found[policy] = (float(np.mean(true)), replayed[policy]["bad_per_1k"].mean or 0.0)
    return found


def test_other_policies_fare_as_they_would_have(bad: dict[str, tuple[float, float]]) -> None:
    """F-16: what was seen while one policy served tells what the others would have met."""
    true, replayed = bad["static"]
    assert abs(replayed - true) < 0.2 * true
    for policy, (true, replayed) in bad.items():
        assert true / 2 < replayed < true * 2, policy


def test_the_replay_ranks_policies_as_the_truth_does(bad: dict[str, tuple[float, float]]) -> None:
    """F-16: whoever tunes by replay walks in the right direction."""
    by_truth, by_replay = sorted(bad, key=lambda name: bad[name][0]), sorted(bad, key=lambda name: bad[name][1])
    assert by_truth == by_replay


def test_the_report_says_how_much_was_seen(hourly: Hourly) -> None:
    report = backtest(hourly, [Player("static", base="static")], seeds=(0,), jobs=1)
    assert report.evidence["primary"] > 0.95
    assert 0.05 < report.evidence["second"] < 0.6
    assert report.requests == len(hourly.chronicles[0].demand.failed)
    recorded = report.recorded["failed_per_1k"]
    assert recorded is not None
    assert recorded < 20
    static = report.figures["static"]["failed_per_1k"].mean
    assert static is not None
    assert static > 50
    assert [one.kind for one in report.incidents if one.endpoint == "primary"]
    assert all(one.policies["static"].left_s is None for one in report.incidents)
