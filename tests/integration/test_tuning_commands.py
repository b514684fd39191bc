"""`routecast backtest` and `routecast thresholds` as operators run them, on a recorded history (F-16)."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from routing.policy import Policy, ReflexPolicy
from scoring.threshold_store import Status, ThresholdStore
from service.cli import main
from sim.arena.scenario import parse_scenario
from sim.arena.truth import make_world
from tests.replayed_history import recorded_history

SCENARIO = """
name: ten-minutes
description: One outage of the primary in ten minutes.
duration_s: 600
arrivals: {rate_per_s: 3}
endpoints:
  - {id: "one:m", provider: one, region: eu-west, ttft_ms: 300, usd_per_mtok: 2.0}
  - {id: "two:m", provider: two, region: eu-west, ttft_ms: 400, usd_per_mtok: 3.0}
incidents:
  - {kind: abrupt, at_s: 240, endpoint: "one:m", hold_s: 60}
"""
CONFIG = """
data_dir: data
providers: [{name: one, base_url: "http://127.0.0.1:9/v1"}, {name: two, base_url: "http://127.0.0.1:9/v1"}]
models: [{id: m, endpoints: [{provider: one, provider_model: m}, {provider: two, provider_model: m}]}]
scoring: {enabled: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration beside a data directory with ten minutes of history that end now."""
    found = tmp_path_factory.mktemp("service")
    world = make_world(parse_scenario(SCENARIO), 2)
    recorded_history(world, found / "data" / "history", time.time() - 660).close()
    (found / "routecast.yaml").write_text(CONFIG)
    return found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: str) -> tuple[int, str, str]:
        code: Any = 0
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_a_backtest_writes_a_page_that_loads_nothing_and_the_same_as_json(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    """F-16: what would have failed, when each policy would have left, with what it rests on."""
    code, out, errors = run(
        "backtest", "--config", str(folder / "routecast.yaml"), "--days", "1", "--policies", "static,envoy",
        "--draws", "2", "--jobs", "1", "--out", str(tmp_path),
    )  # fmt: skip
    assert code == 0, errors
    assert "of 1,000 requests would have failed" in out
    [model] = json.loads((tmp_path / "backtest.json").read_text())["models"]
    assert list(model["figures"]) == ["current", "static", "envoy"]
    current, static = (model["figures"][name]["failed_per_1k"]["mean"] for name in ("current", "static"))
    assert current < 5
    assert static > 50
    assert model["evidence"]["one:m"] == 1.0
    [incident] = [one for one in model["incidents"] if one["endpoint"] == "one:m"]
    assert incident["kind"] == "server_error"
    assert incident["policies"]["static"]["left_s"] is None
    assert 0 <= incident["policies"]["current"]["left_s"] < 20
    page = (tmp_path / "backtest.html").read_text()
    assert "What a replay cannot know" in page
    assert not any(loads in page for loads in ("http://", "https://", "<script", "<link", "url("))


def test_a_step_is_put_on_record_applied_and_taken_back(run: Any, folder: Path) -> None:
    """F-16: ten minutes certify nothing for a tight budget, and something that was asked for is on record with that."""
    at = ("--config", str(folder / "routecast.yaml"))
    code, out, _ = run("thresholds", "propose", *at, "--days", "1", "--jobs", "1")
    assert code == 0
    assert "at least 3.0 are needed" in out
    store = ThresholdStore(folder / "data")
    change = store.propose(
        Policy(), {"reflex.failing_rate": 0.4}, made=1.0, by="tuner", before={"bad_per_1k": 2.0},
        after={"bad_per_1k": 1.0}, evidence={"upper_bound_per_day": 0.5},
    )  # fmt: skip
    code, out, _ = run("thresholds", "list", *at)
    assert code == 0
    assert "proposed" in out
    code, out, _ = run("thresholds", "apply", change.id, *at, "--by", "ada")
    assert code == 0
    assert "reflex.failing_rate: 0.3 → 0.4" in out
    assert store.in_force(Policy()).policy.reflex.failing_rate == 0.4
    code, _, errors = run("thresholds", "apply", change.id, *at)
    assert (code, "no proposal" in errors) == (1, True)
    code, out, _ = run("thresholds", "rollback", *at)
    assert (code, "in force: the configuration" in out) == (0, True)
    code, out, _ = run("thresholds", "list", *at, "--json")
    [told] = json.loads(out)
    assert told["status"] == Status.ROLLED_BACK
    assert told["applied_by"] == "ada"


# The primary becomes slower than callers bear, but not as slow as the policy in force waits for.
SLOW = """
name: slow
description: The primary becomes four times as slow, again and again.
duration_s: 14400
arrivals: {rate_per_s: 1}
endpoints:
  - {id: "one:m", provider: one, region: eu-west, ttft_ms: 300, ttft_sigma: 0.2, usd_per_mtok: 2.0}
  - {id: "two:m", provider: two, region: eu-west, ttft_ms: 400, ttft_sigma: 0.2, usd_per_mtok: 3.0}
incidents:
""" + "\n".join(
    f'  - {{kind: queue, at_s: {900 + 1800 * i}, endpoint: "one:m", climb_s: 60, hold_s: 300, peak: 4.5,'
    " probability: 0.01}"
    for i in range(7)
)
BLUNT = (
    CONFIG
    + """
policy: {reflex: {latency_ratio: 5.0}}
tuning: {false_failovers_per_day: 40}
"""
)


def test_a_better_step_goes_from_history_into_force_and_back(run: Any, tmp_path: Path) -> None:
    """F-16: four hours of history, a budget that they can certify, and everything an operator does with it."""
    policy = Policy(reflex=ReflexPolicy(latency_ratio=5.0))
    world = make_world(parse_scenario(SLOW), 3)
    recorded_history(world, tmp_path / "data" / "history", time.time() - 14_500, policy).close()
    (tmp_path / "routecast.yaml").write_text(BLUNT)
    (tmp_path / "worlds").mkdir()
    (tmp_path / "worlds" / "outage.yaml").write_text(SCENARIO)
    at = ("--config", str(tmp_path / "routecast.yaml"))
    asked = ("--worlds", str(tmp_path / "worlds"), "--days", "1", "--jobs", "2")
    code, out, errors = run("thresholds", "propose", *at, *asked, "--step", "reflex.latency_ratio=3")
    assert code == 0, errors
    assert "reflex.latency_ratio: 5 → 3 takes" in out, "nothing speaks against it"
    store = ThresholdStore(tmp_path / "data")
    [change] = store.changes()
    assert (change.note, change.status) == ("", Status.PROPOSED)
    before, after = change.before["bad_per_1k"], change.after["bad_per_1k"]
    assert before is not None
    assert after is not None
    assert after < 0.8 * before
    assert change.evidence["upper_bound_per_day"] <= 40
    assert change.evidence["gain"]["low"] > 0
    assert f"{before:.2f}" in out
    assert f"{after:.2f}" in out

    code, out, _ = run("thresholds", "apply", change.id, *at)
    assert (code, "5 → 3" in out) == (0, True)
    assert store.in_force(policy).policy.reflex.latency_ratio == 3.0
    code, out, _ = run("thresholds", "list", *at)
    assert f"{before:.2f} → {after:.2f}" in out
    code, out, _ = run("thresholds", "rollback", *at)
    assert (code, "in force: the configuration" in out) == (0, True)
    assert store.in_force(policy).policy.reflex.latency_ratio == 5.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("backtest", "--policies", "nginx"), "expected some of"),
        (("backtest", "--days", "0"), "--days above 0"),
        (("thresholds", "propose", "--step", "reflex.failing_rate"), "name=value"),
        (("thresholds", "propose", "--step", "reflex.silence_s=4"), "failback.steps"),
        (("thresholds", "propose", "--step", "reflex.failing_rate=much"), "name=value"),
    ],
)
def test_wrong_input_ends_with_2_and_says_what_was_expected(
    run: Any, folder: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, _, errors = run(*arguments, "--data", str(folder / "data"))
    assert code == 2
    assert said in errors


def test_a_service_without_history_is_no_error(run: Any, tmp_path: Path) -> None:
    for command in (("backtest", "--out", str(tmp_path / "out")), ("thresholds", "propose")):
        code, out, _ = run(*command, "--data", str(tmp_path / "data"))
        assert code == 0
        assert "nothing to replay" in out


def test_a_damaged_record_of_changes_is_named(run: Any, tmp_path: Path) -> None:
    (tmp_path / "thresholds").mkdir()
    (tmp_path / "thresholds" / "changes.json").write_text("[]")
    code, _, errors = run("thresholds", "list", "--data", str(tmp_path))
    assert (code, "changes.json" in errors) == (1, True)


def test_a_change_that_the_code_no_longer_takes_can_be_taken_back(run: Any, tmp_path: Path) -> None:
    """F-16: a rollback does not depend on what it takes back."""
    store = ThresholdStore(tmp_path)
    change = store.propose(
        Policy(), {"reflex.failing_rate": 0.4}, made=1.0, by="tuner", before={}, after={}, evidence={}
    )  # fmt: skip
    store.apply(change.id, now=2.0, by="ada")
    record = tmp_path / "thresholds" / "changes.json"
    record.write_text(record.read_text().replace("0.4", "7.0"))
    code, _, errors = run("backtest", "--data", str(tmp_path))
    assert (code, "failing_rate" in errors) == (1, True)
    code, out, _ = run("thresholds", "rollback", "--data", str(tmp_path))
    assert (code, "in force: the configuration" in out) == (0, True)
