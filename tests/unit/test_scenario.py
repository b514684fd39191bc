"""Scenario files are checked whole: every refusal names the path of the field and what was expected there."""

from pathlib import Path

import pytest

from sim.decode import FieldError
from sim.faults import FaultKind
from sim.scenario import ModelKind, ScenarioError, load_scenario, parse_scenario

SCENARIOS = Path(__file__).parents[2] / "sim" / "scenarios"

PROVIDERS = """
name: test
seed: 1
duration_s: 60
providers:
  - {name: aurora, region: eu-west, zone: eu-west-a, ttft_ms: 40, tokens_per_s: 500,
     models: [{id: m, provider_model_id: m1}]}
  - {name: dune, region: us-east, zone: us-east-a, ttft_ms: 40, tokens_per_s: 500,
     models: [{id: m, provider_model_id: m2}]}
"""


def test_a_scenario_is_read_into_values() -> None:
    scenario = parse_scenario(PROVIDERS + "faults: [{kind: hang, region: us-east, at_s: 5, for_s: 10}]")
    aurora, dune = scenario.providers
    assert (aurora.ttft_ms, aurora.models[0].kind, dune.models[0].provider_model_id) == (40.0, ModelKind.CHAT, "m2")
    assert scenario.faults[0].kind is FaultKind.HANG
    assert scenario.struck(scenario.faults[0]) == {"dune"}


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_scenarios_are_sound_at_any_speed(path: Path) -> None:
    scenario = load_scenario(path)
    for factor in (0.1, 0.25, 0.3, 1.0, 3.7):
        assert scenario.scaled(factor).duration_s == pytest.approx(scenario.duration_s * factor)


def test_the_demo_tells_its_story_on_one_pair_of_models() -> None:
    demo = load_scenario(SCENARIOS / "demo.yaml")
    assert [(p.name, p.region) for p in demo.providers] == [
        ("aurora", "eu-west"),
        ("borealis", "eu-west"),
        ("cirrus", "eu-west"),
        ("dune", "us-east"),
        ("ember", "us-east"),
    ]
    assert {tuple(m.id for m in p.models) for p in demo.providers} == {
        ("openai/gpt-4", "openai/text-embedding-3-small")
    }
    assert len({p.models[0].provider_model_id for p in demo.providers}) > 1
    assert max(fault.end_s for fault in demo.faults) < demo.duration_s


def test_scaling_compresses_the_story_and_leaves_the_providers_alone() -> None:
    demo = load_scenario(SCENARIOS / "demo.yaml")
    fast = demo.scaled(0.25)
    assert fast.providers == demo.providers
    assert fast.faults != demo.faults
    assert [(f.at_s, f.end_s) for f in fast.faults] == [(f.at_s / 4, f.end_s / 4) for f in demo.faults]
    with pytest.raises(FieldError, match="factor"):
        demo.scaled(0)


def test_neighbouring_faults_of_a_kind_stay_apart_when_scaled() -> None:
    faults = ", ".join(f"{{kind: hang, provider: aurora, at_s: {n * 0.7:.1f}, for_s: 0.7}}" for n in range(40))
    assert len(parse_scenario(PROVIDERS + f"faults: [{faults}]").scaled(0.1).faults) == 40


@pytest.mark.parametrize(
    ("fault", "path", "expected"),
    [
        ("{kind: hang, provider: aurora, for_s: soon}", "faults[0].for_s", "a finite number, got 'soon'"),
        ("{kind: hang, provider: aurora, for_s: .inf}", "faults[0].for_s", "a finite number"),
        ("{kind: hang, provider: aurora, for_s: -1}", "faults[0].for_s", "> 0 seconds, got -1"),
        ("{kind: hang, provider: aurora, fors: 1}", "faults[0].fors", "did you mean for_s?"),
        ("{kind: hung, provider: aurora}", "faults[0].kind", "expected one of latency_ramp, error_rate"),
        ("{kind: hang, provider: [aurora]}", "faults[0].provider", "expected text"),
        ("{provider: aurora}", "faults[0].kind", "is required"),
        ("{kind: hang}", "faults[0]", "expected a target"),
        ("{kind: hang, provider: borealis}", "faults[0].provider", "expected one of aurora, dune"),
        ("{kind: hang, region: mars}", "faults[0].region", "expected one of eu-west, us-east"),
        ("{kind: hang, provider: aurora, region: us-east}", "faults[0].region", "aurora is not in region us-east"),
        ("{kind: hang, provider: aurora, at_s: 60}", "faults[0].at_s", "before the end at 60 s"),
        ("{kind: hang, provider: aurora, at_s: 50, for_s: 11}", "faults[0].for_s", "an end by 60 s, got 61 s"),
        ("{kind: hang, provider: aurora, peak: 2}", "faults[0].peak", "is not a parameter of hang"),
        (
            "{kind: hang, provider: aurora, for_s: 9}, {kind: hang, region: eu-west, at_s: 8}",
            "faults[1].at_s",
            "overlaps faults[0], a hang on the same target",
        ),
        ("7", "faults[0]", "expected a mapping of Fault fields, got 7"),
    ],
)
def test_a_wrong_fault_is_named_by_its_path(fault: str, path: str, expected: str) -> None:
    with pytest.raises(ScenarioError) as refusal:
        parse_scenario(PROVIDERS + f"faults: [{fault}]")
    assert refusal.value.path == path
    assert expected in refusal.value.problem


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("seed: 1", "seed: 1.5", "seed"),
        ("seed: 1", "seed: yes", "seed"),
        ("seed: 1", "speed: 1", "speed"),
        ("duration_s: 60", "duration_s: 0", "duration_s"),
        ("name: dune", "name: aurora", "providers[1].name"),
        ("name: dune", "name: Dune City", "providers[1].name"),
        ("name: dune", "port: 70000, name: dune", "providers[1].port"),
        ("ttft_ms: 40", "ttft_ms: 0", "providers[0].ttft_ms"),
        ("[{id: m, provider_model_id: m2}]", "[]", "providers[1].models"),
        ("[{id: m, provider_model_id: m2}]", "{id: m}", "providers[1].models"),
        ("[{id: m, provider_model_id: m2}]", "[{id: m}]", "providers[1].models[0].provider_model_id"),
        ("provider_model_id: m2}", "provider_model_id: m2, kind: audio}", "providers[1].models[0].kind"),
        ("m2}]", "m2}, {id: m, provider_model_id: m3}]", "providers[1].models[1].id"),
    ],
)
def test_a_wrong_provider_is_named_by_its_path(old: str, new: str, path: str) -> None:
    text = PROVIDERS.replace(old, new)
    assert text != PROVIDERS
    with pytest.raises(ScenarioError) as refusal:
        parse_scenario(text)
    assert refusal.value.path == path


@pytest.mark.parametrize("text", ["", "[]", "name: [", "name: a\nname: b\n"])
def test_text_that_is_no_scenario_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError):
        parse_scenario(text)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.yaml"):
        load_scenario(tmp_path / "nowhere.yaml")
