"""What a forecast costs, and what it is worth.

`make bench` runs the costs. `python -m bench.scoring` also judges the shipped model in worlds that nobody was trained,
calibrated or tuned on (a few minutes; --worlds sets how many): early recall and lead by kind of trouble, false alarms
where trouble is as rare as in service, Brier skill there and in worlds unlike the training's.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, repeat

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.figure import Figure, cpu_us
from routing.outcomes import Outcome
from routing.window import Window
from scoring.alarms import Series, endpoint_days, false_alarms
from scoring.artifact import Model, load
from scoring.explain import contributions
from scoring.features import NAMES, Member, matrix
from scoring.metrics import caught, lead_s, skill
from scoring.registry import PRIOR
from sim.judging import Sampled, rows_of, sample_world, series_of
from sim.processes import process_pool
from sim.world import START_S, Setting

# Far from the seeds of the prior (60 to 63 million) and from those of the scorecard.
_FIRST_SEED = 900_000_000
_TRAINING_ROWS = 1_000_000
_FALSE_PER_DAY = 3.0
# Trouble that builds up can be foreseen; what strikes at once cannot.
_BUILDS_UP = ("ramp", "queue", "creep", "rate_limit")
_KINDS = (*_BUILDS_UP, "abrupt", "hang", "flapping", "region")
# Trouble that is longer in coming than this could be led by 45 s with time to spare.
_GRADUAL_S = 90.0

# The lead before some moment, None without an alarm, and the longest there could be.
_Lead = tuple[float | None, float]


def run() -> list[Figure]:
    """Measure the costs: scoring, explaining, training."""
    model = load(PRIOR)
    windows = _windows(4)
    members = [Member(f"p{i % 4}", f"r{i % 3}") for i in range(1000)]
    four = matrix(members[:4], windows, START_S + 400)
    thousand = np.tile(four, (250, 1))
    groups = [member.provider for member in members]
    seconds, megabytes = _training_cost()
    return [
        Figure("risks of 4 endpoints", cpu_us(lambda: model.forecaster.risks(four, groups[:4]), 200)),
        Figure("features and risks of 4 endpoints", cpu_us(lambda: _tick(model, members[:4], windows), 50)),
        Figure("risks of 1,000 endpoints", cpu_us(lambda: model.forecaster.risks(thousand, groups), 10)),
        Figure("features of 1,000 endpoints", cpu_us(lambda: matrix(members, windows * 250, START_S + 400), 2)),
        # Longer spans are read as well where the last half minute says too little.
        Figure("features of 1,000 quiet endpoints", cpu_us(lambda: matrix(members, windows * 250, START_S + 475), 2)),
        Figure("explanation of one alarm", cpu_us(lambda: contributions(model.forecaster, four[0]), 50)),
        Figure("training on 1,000,000 rows, one thread, CPU s", seconds, None, f"peak memory {megabytes:.0f} MB"),
    ]


def _tick(model: Model, members: Sequence[Member], windows: Sequence[Window]) -> None:
    x = matrix(members, windows, START_S + 400)
    model.forecaster.risks(x[model.forecaster.domain.covers(x)])


def _windows(count: int) -> list[Window]:
    """Return windows with 400 s of ordinary traffic."""
    windows = [Window() for _ in range(count)]
    rng = np.random.default_rng(1)
    for second in range(400):
        for window in windows:
            for i in range(5):
                now, name = START_S + second + i / 5, f"{second}-{i}"
                window.started(name, now)
                window.finished(name, Outcome.OK, now, ttft_s=float(rng.lognormal(-1, 0.3)), output_tokens=20)
    return windows


def _training_cost() -> tuple[float, float]:
    """Train in a process of its own; return its CPU seconds and its peak memory in MB."""
    # One thread: threads that wait for each other burn processor time too.
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "bench.scoring", "--train"], capture_output=True, text=True, check=True, env=alone
    ).stdout.split()
    return float(found[0]), float(found[1])


def _train() -> None:
    from scoring.training import export, fit_classifier  # noqa: PLC0415  # only this process needs scikit-learn

    rng = np.random.default_rng(2)
    x = rng.standard_normal((_TRAINING_ROWS, len(NAMES)))
    odds = 1.5 * x[:, 0] + np.maximum(x[:, 9], 0) + 0.7 * x[:, 20] - 4
    y = (rng.random(_TRAINING_ROWS) < 1 / (1 + np.exp(-odds))).astype(np.int8)
    began = time.process_time()
    export(fit_classifier(x, y, x[:50_000], y[:50_000], seed=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.process_time() - began:.1f} {peak:.0f}")


# What it is worth.


def _sampled(pool: ProcessPoolExecutor, setting: Setting, worlds: int) -> list[Sampled]:
    seeds = range(_FIRST_SEED, _FIRST_SEED + worlds)
    return list(chain.from_iterable(pool.map(partial(sample_world, tick_s=1.0), seeds, repeat(setting))))


def judge(model: Model, worlds: int, jobs: int) -> list[Table]:
    """Return the tables of what the model is worth."""
    with process_pool(jobs) as pool:
        samples = {s: _sampled(pool, s, worlds) for s in (Setting.STEADY, Setting.SPARSE, Setting.SHIFTED)}
    series = {setting: series_of(found, model.forecaster) for setting, found in samples.items()}
    found = [_whole(model, samples, series)]
    # At the threshold that ships, and at the lowest that raises three false alarms a day: in those very worlds if they
    # are shifted, where trouble is as rare as in service for the others.
    for setting, judged in ((Setting.STEADY, Setting.SPARSE), (Setting.SHIFTED, Setting.SHIFTED)):
        thresholds = (model.manifest.threshold, _loosest(series[judged]))
        found += [_kinds(threshold, setting, samples[setting], series[setting]) for threshold in thresholds]
    return found


def _loosest(all_series: Sequence[Series]) -> float:
    days, percent = endpoint_days(all_series), 99
    while percent > 1 and sum(false_alarms(s, (percent - 1) / 100) for s in all_series) <= _FALSE_PER_DAY * days:
        percent -= 1
    return percent / 100


def _whole(model: Model, samples: dict[Setting, list[Sampled]], series: dict[Setting, list[Series]]) -> Table:
    table = Table(title=f"{model.manifest.version}, threshold {model.manifest.threshold:.2g}", title_justify="left")
    for column in ("worlds", "rows", "base rate", "PR-AUC", "Brier skill", "false alarms per endpoint-day"):
        table.add_column(column, justify="left" if column == "worlds" else "right")
    for setting, found in samples.items():
        x, y = rows_of(found, model.forecaster)
        figures = skill(y, model.forecaster.risks(x))
        days = endpoint_days(series[setting])
        alarms = sum(false_alarms(s, model.manifest.threshold) for s in series[setting])
        table.add_row(
            setting.value, str(figures.rows), f"{figures.base_rate:.4f}", f"{figures.pr_auc or 0:.3f}",
            f"{figures.brier_skill or 0:.3f}", f"{alarms / days:.2f} ({alarms} in {days:.1f} days)",
        )  # fmt: skip
    return table


def _kinds(threshold: float, setting: Setting, samples: Sequence[Sampled], all_series: Sequence[Series]) -> Table:
    """Return recall and leads by kind, before the first harm that attempts show; the same for gradual trouble alone,
    whose harm comes _GRADUAL_S or more after its beginning; and before the moment at which any breaker would notice.
    """
    harms, hards = (defaultdict[str, list[_Lead]](list) for _ in range(2))
    for sampled, series in zip(samples, all_series, strict=True):
        for t in sampled.troubles:
            for leads, moment in ((harms, t.harmful), (hards, max(t.hard, t.harmful))):
                lead = lead_s(series.time, series.risk, threshold, t.begins, moment)
                leads[t.kind.value].append((lead, moment - t.begins))
    table = Table(title=f"{setting.value} worlds, by kind, threshold {threshold:g}", title_justify="left")
    table.add_column("kind")
    for group in ("", "gradual ", "hard "):
        for column in ("n", "early recall", "lead of possible, s"):
            table.add_column(f"{group}{column}", justify="right")
    for name, kinds in {**{kind: (kind,) for kind in _KINDS}, "builds up": _BUILDS_UP, "all": tuple(harms)}.items():
        harm, hard = (list(chain.from_iterable(leads[kind] for kind in kinds)) for leads in (harms, hards))
        gradual = [(lead, possible) for lead, possible in harm if possible >= _GRADUAL_S]
        if harm:
            table.add_row(name, *_figures(harm), *_figures(gradual), *_figures(hard))
    return table


def _figures(leads: Sequence[_Lead]) -> tuple[str, str, str]:
    found = caught(leads)
    lead = "none" if found.median_lead_s is None else f"{found.median_lead_s:.0f} of {found.median_possible_s:.0f}"
    return str(found.incidents), "–" if found.early_recall is None else f"{found.early_recall:.2f}", lead


def main() -> None:
    """Print costs and worth."""
    parser = argparse.ArgumentParser(prog="python -m bench.scoring", description=__doc__)
    parser.add_argument("--worlds", type=int, default=12, help="worlds of each setting (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--train", action="store_true", help="only train on a million rows; CPU seconds and MB")
    options = parser.parse_args()
    if options.train:
        _train()
        return
    console = Console(width=130)
    for table in judge(load(PRIOR), options.worlds, options.jobs):
        console.print(table)


if __name__ == "__main__":
    main()
