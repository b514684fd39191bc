"""`python -m sim.scorecard`: policies × scenarios × seeds, as a table, a page and a list of rows.

The rule of this file: the command line. Bad input is said before anything runs, with exit code 2.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console

from sim.arena.scenario import Scenario, load_scenarios
from sim.scorecard.contenders import Entry, entry, known_names
from sim.scorecard.page import page
from sim.scorecard.progress import stage
from sim.scorecard.runner import ORACLE, STATIC, Contender, Row, run_card
from sim.scorecard.summary import summarise
from sim.scorecard.table import card
from sim.scorecard.tuning import CALIBRATION_SEEDS, tuned

SCENARIOS = Path(__file__).with_name("scenarios")
_REFERENCE = "routecast-reflex"
_SEEDS = "1000-1019"
# The short form takes every fourth scenario, the first half of it, and two seeds.
_SHORT_STEP = 4
_SHORT_SEEDS = 2
_SHORTEST_S = 60
_WIDTH = 220
_GREATEST_SEED = 2**64 - 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the scorecard; returns the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        seeds = parse_seeds(options.seeds)
        scenarios = load_scenarios(options.scenarios)
        names = options.policies.split(",") if options.policies else _defaults(short=options.short)
        entries = [entry(name) for name in dict.fromkeys(names)]
        reference = _reference(options.reference, [e.contender.name for e in entries])
        _require_jobs(options.jobs)
        options.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        console.print(f"scorecard: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    if options.short:
        scenarios = tuple(_first_half(scenario) for scenario in scenarios[::_SHORT_STEP])
        seeds = seeds[:_SHORT_SEEDS]
    out: Path = options.out
    contenders = _tuned(entries, scenarios, out, options.jobs, console)
    with stage(console, "playing worlds") as progress:
        rows = run_card(scenarios, seeds, contenders, jobs=options.jobs, check=options.check, progress=progress)
    _write(out, rows, scenarios, contenders, reference)
    title = f"{len(scenarios)} scenarios × {len(seeds)} seeds"
    wide = Console(width=max(_WIDTH, console.width))
    wide.print(card(summarise(rows, reference), reference, title))
    console.print(f"{out / 'scorecard.html'}, {out / 'scorecard.json'}", highlight=False)
    return 0


def _first_half(scenario: Scenario) -> Scenario:
    """Return the scenario until half-time, or its first minute, with what begins in that time."""
    duration_s = max(_SHORTEST_S, scenario.duration_s // 2)
    incidents = tuple(incident for incident in scenario.incidents if incident.at_s < duration_s)
    return replace(scenario, duration_s=duration_s, incidents=incidents)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read seeds like `1000-1019` or `3,5,8-10`.

    Raises:
        ValueError: it is not such a list, is empty, repeats a seed, takes one of the calibration seeds, or has one that
            is no 64-bit number.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"seeds: expected numbers and ranges like 1000-1019,1042, got {part!r}")
        seeds.extend(range(int(first), int(last or first) + 1))
    if max(seeds, default=0) > _GREATEST_SEED:
        raise ValueError(f"seeds: expected at most {_GREATEST_SEED}, got {max(seeds)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds: expected at least one seed and none twice, got {text!r}")
    taken = sorted(set(seeds) & set(CALIBRATION_SEEDS))
    if taken:
        raise ValueError(f"seeds: {CALIBRATION_SEEDS[0]}-{CALIBRATION_SEEDS[-1]} are for calibration, got {taken[0]}")
    return tuple(seeds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim.scorecard", description=__doc__.partition("\n")[0])
    parser.add_argument("--scenarios", type=Path, default=SCENARIOS, help="directory of scenario files (default: ours)")
    parser.add_argument("--seeds", default=_SEEDS, help="like 1000-1019 or 3,5,8-10 (default: %(default)s)")
    parser.add_argument("--policies", help="comma-separated (default: all): " + ", ".join(known_names()))
    parser.add_argument("--reference", help=f"whom the others are compared with (default: {_REFERENCE} or the first)")
    parser.add_argument(
        "--short", action="store_true", help="every fourth scenario, half of it, two seeds, nothing tuned"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="verify the arena's invariants on the way")
    parser.add_argument("--out", type=Path, default=Path("build"), help="output directory (default: %(default)s)")
    return parser


def _defaults(*, short: bool) -> list[str]:
    return [name for name in known_names() if not (short and entry(name).grid)]


def _reference(asked: str | None, names: Sequence[str]) -> str:
    if asked is not None:
        if asked not in names:
            raise ValueError(f"reference: expected one of {', '.join(names)}, got {asked!r}")
        return asked
    others = [name for name in names if name not in (STATIC, ORACLE)]
    return _REFERENCE if _REFERENCE in names else next(iter(others), names[0])


def _require_jobs(jobs: int) -> None:
    if jobs < 1:
        raise ValueError(f"jobs: expected 1 or more, got {jobs}")


def _tuned(
    entries: Sequence[Entry], scenarios: Sequence[Scenario], out: Path, jobs: int, console: Console
) -> list[Contender]:
    contenders = []
    for number, one in enumerate(entries):
        if one.grid is None:
            contenders.append(one.contender)
            continue
        with stage(console, f"tuning {one.contender.name}, policy {number + 1} of {len(entries)}"):
            contenders.append(tuned(one.contender, one.grid, scenarios, out / "scorecard-tuned.json", jobs=jobs))
    return contenders


def _write(
    out: Path, rows: Sequence[Row], scenarios: Sequence[Scenario], contenders: Sequence[Contender], reference: str
) -> None:
    lines = ",\n".join(json.dumps(asdict(row), allow_nan=False) for row in rows)
    (out / "scorecard.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (out / "scorecard.html").write_text(page(rows, scenarios, contenders, reference), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
