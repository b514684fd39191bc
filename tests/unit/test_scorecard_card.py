"""The card: who is on it, how sure its figures are, what its command line refuses, how parameters are tuned."""

import inspect
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from routing.engine import Engine
from sim.arena.incidents import ArenaKind
from sim.arena.scenario import Arrivals, Endpoint, Scenario, Scripted
from sim.arena.truth import World
from sim.faults import Effect
from sim.incidents import Place
from sim.policies import GRIDS, NAMES
from sim.policies.helicone import Helicone
from sim.scorecard.__main__ import main, parse_seeds
from sim.scorecard.contenders import entry, known_names
from sim.scorecard.definitions import METRICS, Evidence
from sim.scorecard.progress import stage
from sim.scorecard.runner import Contender, Row, run_card
from sim.scorecard.shares import Shares
from sim.scorecard.summary import Estimate, estimate, summarise
from sim.scorecard.table import BAD, COLUMNS, card
from sim.scorecard.tuning import SOURCES, content_hash, loss, tune, tuned
from sim.traces import Trace

STORY = Scenario(
    name="story",
    description="A hang.",
    duration_s=240,
    arrivals=Arrivals(rate_per_s=3),
    endpoints=(
        Endpoint(id="a", provider="alpha", region="eu", ttft_ms=300, usd_per_mtok=1),
        Endpoint(id="b", provider="beta", region="us", ttft_ms=400, usd_per_mtok=2),
    ),
    incidents=(Scripted(kind=ArenaKind.HANG, at_s=60, hold_s=90, probability=1, endpoint="a"),),
)
STATIC, ORACLE = Contender("static", "static"), Contender("oracle", "oracle")


def row(policy: str, seed: int, bad: float | None, scenario: str = "s", avoidable: float = 10.0) -> Row:
    metrics = dict.fromkeys(METRICS, 0.0)
    removed = None if bad is None else 1 - bad / avoidable
    return Row(
        policy, scenario, seed,
        {**metrics, "bad_per_1k": bad, "avoidable_per_1k": avoidable, "avoidable_removed": removed},
    )  # fmt: skip


def test_every_policy_is_known_and_those_with_a_grid_once_more_tuned() -> None:
    assert set(NAMES) | {"oracle"} <= set(known_names())
    assert {name for name in known_names() if entry(name).grid} == {
        name if name.startswith("tuned-") else f"tuned-{name}" for name in GRIDS
    }
    assert entry("tuned-envoy").contender == Contender("tuned-envoy", "envoy")
    assert entry("tuned-breaker").contender == Contender("tuned-breaker", "tuned-breaker")
    assert entry("envoy").grid is None
    with pytest.raises(ValueError, match=r"no 'nginx'; expected some of static, .*oracle"):
        entry("nginx")


def test_all_contenders_of_a_seed_meet_the_same_world() -> None:
    rows = run_card([STORY], [1, 2], [STATIC, Contender("again", "static"), ORACLE], jobs=1, check=True)
    assert [(r.policy, r.seed) for r in rows] == [
        (policy, seed) for policy in ("static", "again", "oracle") for seed in (1, 2)
    ]
    assert [r.metrics for r in rows[:2]] == [r.metrics for r in rows[2:4]]
    assert rows[0].metrics != rows[1].metrics
    assert [r.metrics["avoidable_removed"] for r in rows] == [0, 0, 0, 0, 1, 1]


def test_processes_change_nothing() -> None:
    contenders = [ORACLE, Contender("envoy", "envoy")]
    assert run_card([STORY], [1, 2], contenders, jobs=2) == run_card([STORY], [1, 2], contenders, jobs=1)


def test_an_estimate_is_the_mean_with_an_interval_from_its_seeds() -> None:
    rng = np.random.default_rng(3)
    # Scenarios differ by far more than seeds do; the interval must not see that.
    found = estimate([rng.normal(10, 1, 50), rng.normal(1000, 1, 50)])
    assert found.mean == pytest.approx(505, abs=0.3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 505 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / 10, rel=0.3)
    assert estimate([np.array([np.nan])]) == Estimate(None, None, None)
    assert estimate([np.array([1.0, np.nan, 3.0])]).mean == 2


def test_differences_are_paired_and_ratios_are_of_sums() -> None:
    rows = [row("ours", seed, 5.0 + seed) for seed in range(9)]
    rows += [row("theirs", seed, 7.0 + seed) for seed in range(9)]
    rows += [row("ours", 9, 500.0, "big", 1000.0), row("theirs", 9, None, "big", 1000.0)]
    lines = {line.policy: line for line in summarise(rows, "ours")}
    difference = lines["theirs"].differences["bad_per_1k"]
    assert difference == Estimate(2.0, 2.0, 2.0)
    assert lines["ours"].metrics["avoidable_removed"].mean == pytest.approx((9 * 10 - 81 + 1000 - 500) / 1090)
    with pytest.raises(ValueError, match="reference: expected one of ours, theirs, got 'nobody'"):
        summarise(rows, "nobody")


def test_a_figure_without_evidence_is_a_dash() -> None:
    assert BAD.text(Estimate(None, None, None)) == "–"
    assert BAD.text(Estimate(-0.0001, -1.0, 1.0), signed=True) == "+0.00"
    table = card(summarise([row("ours", 1, None)], "ours"), "ours", "t")
    assert table.row_count == 1
    assert len(table.columns) == len(COLUMNS) + 2


def test_tuning_takes_the_point_that_hurts_least() -> None:
    grid = {"error_share": (0.2, 0.9), "attempt_timeout_s": (2.0, 60.0)}
    best = tune(Contender("tuned-helicone", "helicone"), grid, [STORY], jobs=1)
    assert best.parameters["attempt_timeout_s"] == 2.0
    assert loss([row("p", 1, 4.0)]) == 4.0


def test_a_log_hears_of_every_tenth_and_a_terminal_of_every_step() -> None:
    for total, lines in ((260, 11), (4, 5), (1, 2)):
        log = Console(file=io.StringIO(), force_terminal=False)
        with stage(log, "playing worlds") as progress:
            for done in range(1, total + 1):
                progress(done, total)
        written = log.file.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO
        assert written[0] == "playing worlds"
        assert written[-1] == f"playing worlds: {total} of {total}"
        assert len(written) == lines
    terminal = Console(file=io.StringIO(), force_terminal=True)
    with stage(terminal, "playing worlds") as progress:
        progress(3, 260)
    assert "playing worlds" in terminal.file.getvalue()  # type: ignore[attr-defined]  # a StringIO


def test_a_tuned_policy_is_remembered(tmp_path: Path) -> None:
    cache = tmp_path / "tuned.json"
    base, grid = Contender("tuned-smg", "smg"), {"max_failures": (3.0,)}
    first = tuned(base, grid, [STORY], cache, jobs=1)
    assert first.parameters == {"max_failures": 3.0}
    (key,) = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: {"max_failures": 5.0}}))
    assert tuned(base, grid, [STORY], cache, jobs=1).parameters == {"max_failures": 5.0}
    assert tuned(base, {"max_failures": (4.0,)}, [STORY], cache, jobs=1).parameters == {"max_failures": 4.0}


def test_what_was_tuned_is_forgotten_with_any_change_of_the_code_it_rests_on(tmp_path: Path) -> None:
    package = tmp_path / "policies"
    package.mkdir()
    (package / "envoy.py").write_text("RETRIES = 1\n")
    (package / "table.csv").write_text("1\n")
    seen = [content_hash([package])]
    for name, text in (("envoy.py", "RETRIES = 2\n"), ("table.csv", "2\n"), ("new.py", "")):
        (package / name).write_text(text)
        seen.append(content_hash([package]))
    (package / "new.py").rename(package / "renamed.py")
    seen.append(content_hash([package]))
    assert len(set(seen)) == len(seen)
    (package / "envoy.pyc").write_bytes(b"compiled")
    assert content_hash([package]) == seen[-1]


@pytest.mark.parametrize("module", [Helicone, World, Engine, Effect, Place, Trace, Evidence, Shares])
def test_the_code_of_a_run_is_among_what_tuning_rests_on(module: type) -> None:
    path = Path(inspect.getfile(module))
    assert any(path.is_relative_to(source) for source in SOURCES)


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("1000-1003") == (1000, 1001, 1002, 1003)
    assert parse_seeds("30, 20-21") == (30, 20, 21)


@pytest.mark.parametrize("text", ["", "a", "1000-", "30,30", "1010-1000", "9", "5-30", "99999999999999999999"])
def test_seeds_that_are_none_twice_or_for_calibration_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policies", "static,nginx"], "there is no 'nginx'"),
        (["--seeds", "3"], "calibration"),
        (["--policies", "static,envoy", "--reference", "oracle"], "expected one of static, envoy"),
        (["--scenarios", "nowhere"], "at least one .yaml"),
        (["--jobs", "0"], "jobs: expected 1 or more, got 0"),
    ],
)
def test_bad_input_is_said_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "out")]) == 2
    assert "file" in capsys.readouterr().err


def test_the_short_form_of_a_minute_is_that_minute_and_of_a_story_its_first_half(tmp_path: Path) -> None:
    text = (
        "name: NAME\ndescription: d\nduration_s: DURATION\narrivals: {rate_per_s: 1}\nendpoints:\n"
        "  - {id: a, provider: p, region: r, ttft_ms: 400, usd_per_mtok: 1}\n"
        "  - {id: b, provider: q, region: s, ttft_ms: 400, usd_per_mtok: 1}\n"
        "incidents: [{kind: abrupt, endpoint: a, at_s: 1}, {kind: hang, endpoint: a, at_s: 50}]\n"
    )
    # Every fourth is played: the first and the fifth.
    for number, duration_s in enumerate((60, 60, 60, 60, 100)):
        story = text.replace("NAME", f"s{number}").replace("DURATION", str(duration_s))
        (tmp_path / f"{number}.yaml").write_text(story)
    out = tmp_path / "out"
    assert main(["--short", "--scenarios", str(tmp_path), "--policies", "static", "--out", str(out)]) == 0
    rows = json.loads((out / "scorecard.json").read_text())
    assert {row["scenario"] for row in rows} == {"s0", "s4"}
    assert all(30 < row["metrics"]["requests"] < 100 for row in rows)


def test_an_unknown_key_in_a_scenario_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\nweather: bad\n")
    assert main(["--scenarios", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "weather: unknown key" in capsys.readouterr().err
