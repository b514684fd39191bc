"""Tunes a policy's parameters on calibration seeds, which no evaluation may use.

The rule of this file: the tuned policies get the same chance a careful operator would have: every point of the grid
the policy declares is tried in the scenarios it will be judged in, on other days. Successive halving (Jamieson and
Talwalkar, AISTATS 2016) spends the runs where they decide: all points on few seeds, the best on all.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sim.arena.scenario import Scenario
from sim.scorecard.runner import Contender, Row, run_card

CALIBRATION_SEEDS = range(10)
# Seeds of the first round, for every point, and of the second, for the best quarter.
_ROUNDS = (CALIBRATION_SEEDS[:1], CALIBRATION_SEEDS[1:5])
_KEPT = 4
# What a bad request per thousand is worth: ten needlessly diverted per thousand, or a hundred switches a day.
_NEEDLESS_PER_1K = 0.1
_SWITCH_PER_DAY = 0.01
_ROOT = Path(__file__).parents[2]
SOURCES = tuple(
    _ROOT / place
    for place in (
        "routing", "sim/arena", "sim/policies", "sim/traces", "sim/faults.py", "sim/incidents.py",
        "sim/scorecard/definitions.py", "sim/scorecard/shares.py", "sim/scorecard/tuning.py",
    )
)  # fmt: skip
"""What a run's outcome follows from besides its arguments: whoever edits one of these has nothing tuned."""


def loss(rows: Sequence[Row]) -> float:
    """Return what tuning minimises, averaged over rows: bad per thousand plus needless diversion plus switching."""
    total = 0.0
    for row in rows:
        bad, needless, switches = (
            row.metrics[name] or 0.0 for name in ("bad_per_1k", "needless_diversion", "switches_per_day")
        )
        total += bad + _NEEDLESS_PER_1K * 1000 * needless + _SWITCH_PER_DAY * switches
    return total / len(rows)


def tune(
    base: Contender, grid: Mapping[str, Sequence[float]], scenarios: Sequence[Scenario], *, jobs: int = 2
) -> Contender:
    """Return `base` with the best parameters of the grid."""
    names = list(grid)
    points = [
        Contender(f"{base.name}#{number}", base.base, dict(zip(names, values, strict=True)))
        for number, values in enumerate(itertools.product(*grid.values()))
    ]
    for seeds in _ROUNDS:
        rows = run_card(scenarios, seeds, points, jobs=jobs)
        losses = {point.name: loss([row for row in rows if row.policy == point.name]) for point in points}
        points = sorted(points, key=lambda point: losses[point.name])[: math.ceil(len(points) / _KEPT)]
    return Contender(base.name, base.base, points[0].parameters)


def content_hash(sources: Iterable[Path]) -> str:
    """Return the SHA-256, in hex, of the names and contents of the modules and data in `sources`, files or
    directories.
    """
    digest = hashlib.sha256()
    for source in sources:
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        for path in files:
            if path.suffix != ".pyc":
                content = path.read_bytes()
                digest.update(f"{path.relative_to(source.parent)} {len(content)}\n".encode())
                digest.update(content)
    return digest.hexdigest()


def tuned(
    base: Contender,
    grid: Mapping[str, Sequence[float]],
    scenarios: Sequence[Scenario],
    cache: Path,
    *,
    jobs: int = 2,
) -> Contender:
    """Return `base` tuned; `cache` (a JSON file) remembers it by everything it depends on, the code included."""
    described = [base.base, {name: list(values) for name, values in grid.items()}, [asdict(s) for s in scenarios]]
    key = hashlib.sha256(f"{json.dumps(described, sort_keys=True)} {content_hash(SOURCES)}".encode()).hexdigest()[:16]
    known: dict[str, dict[str, float]] = json.loads(cache.read_text()) if cache.exists() else {}
    if key not in known:
        known[key] = dict(tune(base, grid, scenarios, jobs=jobs).parameters)
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(known, indent=1, sort_keys=True))
    return Contender(base.name, base.base, known[key])
