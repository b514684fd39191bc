"""A scenario of the arena is sound or refused with the path of the field and what was expected."""

from pathlib import Path

import pytest

from sim.arena.incidents import DEFAULTS, ArenaKind, Shape, faults_of
from sim.arena.scenario import load_scenario, load_scenarios, parse_scenario
from sim.decode import ScenarioError
from sim.faults import effect_at
from sim.incidents import Place
from sim.scorecard.__main__ import SCENARIOS

GOOD = """
name: one
description: A test.
duration_s: 600
arrivals: {process: poisson, rate_per_s: 2}
endpoints:
  - {id: a, provider: alpha, region: eu, ttft_ms: 300, usd_per_mtok: 1}
  - {id: b, provider: beta, region: us, ttft_ms: 400, usd_per_mtok: 2}
incidents:
  - {kind: abrupt, at_s: 100, endpoint: a}
"""
PLACE = Place("alpha", "eu")


@pytest.mark.parametrize(
    ("old", "new", "path", "problem"),
    [
        ("rate_per_s: 2", "rate_per_s: 2, burstiness: 1", "arrivals.burstiness", "unknown key"),
        ("rate_per_s: 2", "rate_per_s: fast", "arrivals.rate_per_s", "expected a finite number"),
        ("rate_per_s: 2", "rate_per_s: 0", "arrivals.rate_per_s", "expected > 0"),
        ("process: poisson", "process: pareto", "arrivals.process", "expected one of poisson, azure_conv"),
        ("duration_s: 600", "duration_s: 600.5", "duration_s", "expected a whole number"),
        ("duration_s: 600", "duration_s: 6", "duration_s", "60..2592000"),
        ("id: b", "id: a", "endpoints[1].id", "repeats endpoints[0].id"),
        ("ttft_ms: 300", "ttft_ms: 300, error_rate: 0.5", "endpoints[0].error_rate", "in [0, 0.1)"),
        ("kind: abrupt", "kind: earthquake", "incidents[0].kind", "expected one of queue"),
        ("kind: abrupt", "kind: abrupt, peak: 4", "incidents[0].peak", "is not a parameter of abrupt"),
        ("kind: abrupt", "kind: abrupt, probability: 2", "incidents[0].probability", "in (0, 1]"),
        ("endpoint: a", "endpoint: c", "incidents[0].endpoint", "expected one of a, b"),
        (", endpoint: a", "", "incidents[0]", "expected a target"),
        ("endpoint: a", "provider: alpha, region: us", "incidents[0]", "names no endpoint"),
        ("kind: abrupt", "kind: regional", "incidents[0].endpoint", "strikes a provider or a region"),
        ("at_s: 100", "at_s: 600", "incidents[0].at_s", "a start before the end"),
        ("rate_per_s: 2", "rate_per_s: 1.0e+9", "arrivals.rate_per_s", "at most 1e+07 requests in 600 s"),
        ("rate_per_s: 2", "rate_per_s: 2, bursts_per_day: 1.0e+9", "arrivals.bursts_per_day", "0..10000"),
        ("rate_per_s: 2", "rate_per_s: 2, burst_factor: 1000", "arrivals.burst_factor", "1..100"),
        ("duration_s: 600", "duration_s: 600\ndeadline_s: 1.0e+18", "deadline_s", "at most a day"),
        ("duration_s: 600", "duration_s: 600\nsessions: 10000000000", "sessions", "at most 10**9"),
        ("kind: abrupt", "kind: flapping, times: 1001", "incidents[0].times", "a whole number from 1 to 1000"),
        ("name: one", "name: one\nname: two", "", "repeated key 'name'"),
    ],
)
def test_an_unsound_scenario_is_refused_with_its_path(old: str, new: str, path: str, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(GOOD.replace(old, new, 1))
    assert caught.value.path == path
    assert problem in caught.value.problem


def test_an_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(GOOD.replace("rate_per_s: 2", "rate_per_s: -1"))
    with pytest.raises(ScenarioError, match=r"broken\.yaml: arrivals\.rate_per_s: expected > 0, got -1"):
        load_scenario(path)


def test_a_directory_needs_scenarios_of_distinct_names(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="at least one"):
        load_scenarios(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(GOOD)
    with pytest.raises(ScenarioError, match=r"b\.yaml: name: repeats the name of a\.yaml"):
        load_scenarios(tmp_path)


def test_our_scenarios_cover_every_kind_thin_traffic_and_a_diurnal_load() -> None:
    scenarios = load_scenarios(SCENARIOS)
    kinds = {entry.kind for scenario in scenarios for entry in (*scenario.incidents, *scenario.recurring)}
    assert kinds == set(ArenaKind)
    assert any(scenario.arrivals.rate_per_s < 0.2 for scenario in scenarios)
    assert any(scenario.arrivals.diurnal_amplitude > 0.5 for scenario in scenarios)


@pytest.mark.parametrize("kind", list(ArenaKind))
def test_every_kind_does_harm_and_ends(kind: ArenaKind) -> None:
    faults = faults_of(kind, DEFAULTS[kind], PLACE, 50.0)
    assert min(fault.at_s for fault in faults) == 50.0
    end = int(max(fault.end_s for fault in faults)) + 1
    effects = [effect_at(faults, PLACE.provider, PLACE.region, t) for t in range(50, end)]
    hurt = [e for e in effects if e.refuse or e.failures or e.ttft_multiplier > 1 or e.tokens_per_s_multiplier < 1]
    assert hurt
    before, after = (effect_at(faults, PLACE.provider, PLACE.region, t) for t in (49.9, end + 0.1))
    assert before == after == effect_at((), PLACE.provider, PLACE.region, 0.0)


def test_a_queue_grows_slowly_and_then_steeply() -> None:
    numbers = Shape(climb_s=120, peak=10).complete(ArenaKind.QUEUE)
    faults = faults_of(ArenaKind.QUEUE, numbers, PLACE, 0.0)
    slow = [effect_at(faults, PLACE.provider, PLACE.region, t).ttft_multiplier for t in (15, 65, 115, 125)]
    assert 1 < slow[0] < slow[1] < 2.5
    assert slow[2] == pytest.approx(10)
    assert slow[3] == pytest.approx(10)
