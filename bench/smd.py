"""`python -m bench.smd [FOLDER]`: are load crossings of real machines foretold? Our fit against level and z rules.

Data: Server Machine Dataset (Su et al., KDD 2019; MIT), four machines, 38 metrics a minute for 33 days, as Parquet
files `<machine>_train.parquet` and `<machine>_test.parquet`. A machine's objective is broken while the five-minute mean
of its CPU (m00), load (m01) or disk service time (m11) is above its 99.5 % quantile; the question each quiet minute is
whether it will break within 15 minutes.

The rule of this file: as in service, the model is made anew every few days from what came before, and nothing later is
used: 70 % of the past fit, the next 15 % stop, calibrate and choose thresholds, the last 15 % pass the gate, and the
four days after that are only looked at. For the gate a minute is four of its seconds, so that 15 minutes are the
horizon it is made for. Where the gate does not let the model pass, the level rule serves until the next time. What is
looked at, and may serve, is the model made anew from the whole past, with as many trees as stopping found; it keeps the
calibration and threshold of the one that was stopped.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from rich import box
from rich.console import Console
from rich.table import Table

from scoring.alarms import DAY_S, choose_threshold, endpoint_days, false_alarms
from scoring.calibration import Calibration, fit_calibration, fit_groups
from scoring.forecaster import Scores, Weighted, weighted_sum
from scoring.gate import Contender, GateReport, judge
from scoring.history_rows import Part
from scoring.metrics import average_precision, lead_s
from scoring.training import Shape, export, fit_classifier, refitted

FOLDER = Path("../shared/data/smd/parquet")
_OUTPUT = Path("build/smd.json")
MACHINES = ("machine-1-6", "machine-2-1", "machine-2-7", "machine-3-3")
SIGNALS = (0, 1, 11)
_METRICS = 38
_LIMIT_QUANTILE = 0.995
_HORIZON = 15
_SMOOTH = 5
_DAY = 1440
_SHARES = (0.7, 0.15, 0.15)
_FOLDS = 4
_LIMIT_FROM = 0.6
_GATE_S_PER_MINUTE = 4.0
_GATE_DAYS_PER_DAY = DAY_S / (_DAY * _GATE_S_PER_MINUTE)
MAX_ALARMS_PER_DAY = 3.0
MODEL, LEVEL, Z, SERVED = "model", "level rule", "z rule", "what is served"
# A hundred breaks or so are few: trees are small, their leaves outlast any one break, and each of some forests sees
# other features at each split.
_FORESTS = 3
_SHAPE = Shape(leaves=4, smallest_leaf=500, features_per_split=0.3)
# Nearer to the limit, the first two features, is never safer; all else is free.
_NEARNESS = (1, 1)
# CPU and load, memory, disk, swap, network, TCP and UDP.
_GROUPS = (range(4), range(4, 8), range(8, 16), range(16, 18), range(18, 22), range(22, 38))

_Floats = npt.NDArray[np.float64]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Minutes:
    """One machine's signal, minute by minute: features (n × k), label, which minutes count, and the two plain rules."""

    machine: str
    signal: int
    x: _Floats
    y: npt.NDArray[np.int8]
    counts: _Bools
    level: _Floats
    z: _Floats

    def cut(self, first: int, last: int) -> "Minutes":
        """Return the minutes from `first` until before `last`."""
        part = slice(first, last)
        return Minutes(
            self.machine, self.signal, self.x[part], self.y[part], self.counts[part], self.level[part], self.z[part]
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """Somebody on a test half: average precision, the share of breaks an alarm preceded, and false alarms a day."""

    average_precision: float | None
    caught: float | None
    false_per_day: float


@dataclass(frozen=True, slots=True)
class Fold:
    """Four days: the minutes looked at, who raised which risk, at which thresholds, and who served each machine."""

    test: Sequence[Minutes]
    risks: Mapping[str, _Floats]
    thresholds: Mapping[str, float]
    served: Mapping[str, str]
    reasons: Mapping[str, str]


def trailing_mean(values: _Floats, span: int) -> _Floats:
    """Return the mean of the last `span` rows at each row of n × k, of fewer at the beginning."""
    total = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(last - span, 0)
    mean: _Floats = (total[last] - total[first]) / (last - first)[:, None]
    return mean


def earlier(values: _Floats, minutes: int) -> _Floats:
    """Return each row as it was `minutes` before; at the beginning, the first row."""
    return np.concatenate([np.repeat(values[:1], minutes, axis=0), values[:-minutes]])


def minutes_of(machine: str, signal: int, values: _Floats, limit: float) -> Minutes:
    """Return features and labels of n × 38 `values`; everything looks back only, and is relative to the machine."""
    smooth = trailing_mean(values, _SMOOTH)[:, signal]
    is_broken = smooth > limit
    usual = trailing_mean(values, _DAY // 2)
    spread = np.sqrt(np.maximum(trailing_mean(values**2, _DAY // 2) - usual**2, 1e-8)) + 1e-3
    usual, spread = earlier(usual, _HORIZON), earlier(spread, _HORIZON)
    columns = [smooth / limit, values[:, signal] / limit]
    for span in (1, 5, 15, 60):
        z = (trailing_mean(values, span) - usual) / spread
        columns.append(z[:, signal])
        for group in _GROUPS:
            columns += [z[:, group].max(axis=1), z[:, group].mean(axis=1)]
    for short, long in ((5, 15), (15, 60), (60, 240)):
        columns.append((trailing_mean(values, short) - trailing_mean(values, long))[:, signal] / limit)
    columns.append(sliding_window_view(np.pad(smooth, (59, 0), mode="edge"), 60).max(axis=1) / limit)
    count = np.cumsum(is_broken, dtype=np.float64)[:, None]
    columns.append(np.log1p(count - earlier(count, _DAY))[:, 0])
    place = np.arange(len(smooth))
    last = np.maximum.accumulate(np.where(is_broken, place, -_DAY))
    columns.append(np.log1p(np.minimum(place - last, _DAY)))
    # What followed at the same time an hour, some hours, a day, two and three days ago: much load comes by the clock.
    followed = sliding_window_view(np.pad(smooth, (0, _HORIZON), mode="edge"), _HORIZON + 1)[:, 1:].max(axis=1) / limit
    before = [np.concatenate([np.zeros(back), followed[:-back]]) for back in (60, 360, 720, _DAY, 2 * _DAY, 3 * _DAY)]
    columns += [*before, (before[3] + before[4] + before[5]) / 3]
    y, counts = labels(is_broken)
    z = (trailing_mean(values, _SMOOTH)[:, signal] - usual[:, signal]) / spread[:, signal]
    return Minutes(machine, signal, np.stack(columns, axis=1), y, counts, smooth / limit, z)


def labels(is_broken: _Bools) -> tuple[npt.NDArray[np.int8], _Bools]:
    """Return whether the objective breaks within the horizon after each minute, and which minutes are asked about:
    those after a horizon without a break, half a day after the beginning, and a horizon before the end.
    """
    n = len(is_broken)
    onset = is_broken & ~np.concatenate([[False], is_broken[:-1]])
    onsets, broken = (np.concatenate([[0], np.cumsum(marks)]) for marks in (onset, is_broken))
    place = np.arange(n)
    y = onsets[np.minimum(place + 1 + _HORIZON, n)] > onsets[place + 1]
    quiet = broken[place + 1] == broken[np.maximum(place + 1 - _HORIZON, 0)]
    return y.astype(np.int8), quiet & (place >= _DAY // 2) & (place < n - _HORIZON)


def read(folder: Path, machine: str, half: str) -> _Floats:
    """Return one half of a machine's record, n × 38 in [0, 1]."""
    names = ", ".join(f"m{i:02d}" for i in range(_METRICS))
    path = folder / f"{machine}_{half}.parquet"
    with duckdb.connect() as connection:
        query = f"SELECT {names} FROM read_parquet(?)"  # noqa: S608 - names of our own making
        columns = connection.execute(query, [str(path)]).fetchnumpy()
    return np.stack([np.asarray(columns[f"m{i:02d}"], dtype=np.float64) for i in range(_METRICS)], axis=1)


def prepare(folder: Path) -> list[tuple[Minutes, int]]:
    """Return the whole record of each machine and signal, with the number of minutes of its train half."""
    found = []
    for machine in MACHINES:
        train, later = read(folder, machine, "train"), read(folder, machine, "test")
        for signal in SIGNALS:
            known = trailing_mean(train[: int(_LIMIT_FROM * len(train))], _SMOOTH)[:, signal]
            limit = float(np.quantile(known, _LIMIT_QUANTILE))
            found.append((minutes_of(machine, signal, np.concatenate([train, later]), limit), len(train)))
    return found


def fold_of(records: Sequence[tuple[Minutes, int]], number: int) -> Fold:
    """Learn from everything before one quarter of the test halves, and look at that quarter."""
    parts: list[list[Minutes]] = [[], [], []]
    test = []
    for whole, train in records:
        length = (len(whole.y) - train) / _FOLDS
        first, last = train + int(number * length), train + int((number + 1) * length)
        bounds = [0, *(int(share * first) for share in np.cumsum(_SHARES))]
        for part, begin, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
            # A label looks ahead: what lies on the next part is left out.
            part.append(whole.cut(begin, end - _HORIZON))
        test.append(whole.cut(first, last))
    stopped, whole_past = fit(parts)
    rivals = Rivals(stopped, parts[1])
    reports = {machine: _gate(rivals, [m for m in parts[2] if m.machine == machine]) for machine in MACHINES}
    served = {machine: MODEL if report.passed else LEVEL for machine, report in reports.items()}
    ahead = rivals.with_model(whole_past)
    risks = {name: ahead.risk(name, test) for name in (MODEL, LEVEL, Z)}
    risks[SERVED] = np.concatenate([ahead.risk(served[m.machine], [m]) for m in test])
    return Fold(test, risks, rivals.threshold, served, {machine: r.reason for machine, r in reports.items()})


def _gate(rivals: "Rivals", gate: Sequence[Minutes]) -> GateReport:
    model, level, z = (rivals.contender(name, gate) for name in (MODEL, LEVEL, Z))
    return judge(part_of(gate), model, level, [z], block_s=_DAY * _GATE_S_PER_MINUTE, tick_s=_GATE_S_PER_MINUTE)


def _rows(parts: Sequence[Minutes]) -> tuple[_Floats, npt.NDArray[np.int8]]:
    return np.concatenate([p.x[p.counts] for p in parts]), np.concatenate([p.y[p.counts] for p in parts])


@dataclass(frozen=True, slots=True)
class Blend:
    """Log-odds of some forests, added by weight, as a forecaster of the service adds them."""

    parts: tuple[Weighted, ...]

    def log_odds(self, x: _Floats) -> _Floats:
        """Return one value per row of `x` (n × features), higher for more risk."""
        return weighted_sum(self.parts, x)


def fit(parts: Sequence[Sequence[Minutes]]) -> tuple[Blend, Blend]:
    """Return what is fitted on the first part and stopped on the second, and the same made from all parts.

    The first is for calibration and gate, which need minutes it has not seen; the second knows the latest days as well.
    """
    (x, y), (x_stop, y_stop) = _rows(parts[0]), _rows(parts[1])
    x_all, y_all = _rows([minutes for part in parts for minutes in part])
    directions = (*_NEARNESS, *(0 for _ in range(x.shape[1] - len(_NEARNESS))))
    fitted = [fit_classifier(x, y, x_stop, y_stop, seed, directions, _SHAPE) for seed in range(_FORESTS)]
    again = [refitted(one, x_all, y_all) for one in fitted]
    stopped, whole = (Blend(tuple(Weighted(1 / _FORESTS, export(one)) for one in some)) for some in (fitted, again))
    return stopped, whole


def part_of(all_minutes: Sequence[Minutes]) -> Part:
    """Return minutes as the gate sees history: each signal is an endpoint, each machine a provider."""
    names = [np.full(len(m.y), f"{m.machine}:m{m.signal:02d}", dtype=object) for m in all_minutes]
    counts = np.concatenate([m.counts for m in all_minutes])
    return Part(
        x=np.concatenate([m.x for m in all_minutes]),
        y=np.concatenate([m.y for m in all_minutes]),
        usable=counts,
        judged=counts,
        time=np.concatenate([np.arange(len(m.y)) * _GATE_S_PER_MINUTE for m in all_minutes]),
        endpoint=np.concatenate(names),
        provider=np.concatenate([np.full(len(m.y), m.machine, dtype=object) for m in all_minutes]),
        horizon_s=_HORIZON * _GATE_S_PER_MINUTE,
    )


class Rivals:
    """The model and the two rules as calibrated risks, each fitted to its scores on the second part."""

    def __init__(self, model: Scores, stop: Sequence[Minutes]) -> None:
        self._scores: Mapping[str, Callable[[Minutes], _Floats]] = {
            MODEL: lambda minutes: model.log_odds(minutes.x),
            LEVEL: lambda minutes: np.log(np.maximum(minutes.level, 1e-3)),
            Z: lambda minutes: minutes.z,
        }
        self._calibration = {name: self._fitted(name, stop) for name in self._scores}
        part = part_of(stop)
        self.threshold = {
            name: choose_threshold(
                part.series(self.risk(name, stop)), MAX_ALARMS_PER_DAY * _GATE_DAYS_PER_DAY
            ).threshold
            for name in self._scores
        }

    def _fitted(self, name: str, stop: Sequence[Minutes]) -> Mapping[str, Calibration]:
        """Calibrate somebody for each machine, drawn towards what holds for all: a break is one event, not minutes."""
        scores = np.concatenate([self._scores[name](m)[m.counts] for m in stop])
        y = np.concatenate([m.y[m.counts] for m in stop])
        machines = np.concatenate([np.full(int(m.counts.sum()), m.machine, dtype=object) for m in stop])
        return fit_groups(scores, y, machines.tolist(), fit_calibration(scores, y), rows_per_event=_HORIZON)

    def with_model(self, model: Scores) -> "Rivals":
        """Return the same with another model, at the calibrations and thresholds of before."""
        other = copy(self)
        other._scores = {**self._scores, MODEL: lambda minutes: model.log_odds(minutes.x)}
        return other

    def risk(self, name: str, all_minutes: Sequence[Minutes]) -> _Floats:
        """Return somebody's risk of each minute."""
        score, calibration = self._scores[name], self._calibration[name]
        return np.concatenate([calibration[m.machine].risk(score(m)) for m in all_minutes])

    def contender(self, name: str, all_minutes: Sequence[Minutes]) -> Contender:
        """Return somebody as the gate knows them."""
        return Contender(name, self.risk(name, all_minutes), self.threshold[name])


def judged(folds: Sequence[Fold], machine: str | None, name: str) -> Judged:
    """Judge one contender on one machine over all folds, or on all machines."""
    y, risk, false, caught, breaks, days = [], [], 0, 0, 0, 0.0
    for fold in folds:
        ends = np.cumsum([len(m.y) for m in fold.test])
        for minutes, own in zip(fold.test, np.split(fold.risks[name], ends[:-1]), strict=True):
            if machine not in (None, minutes.machine):
                continue
            part = part_of([minutes])
            y.append(part.y[part.usable])
            risk.append(own[part.usable])
            threshold = fold.thresholds[fold.served[minutes.machine] if name == SERVED else name]
            for series in part.series(own):
                leads = [
                    lead_s(series.time, series.risk, threshold, start - 2 * part.horizon_s, start)
                    for start, _ in series.incidents
                ]
                false += false_alarms(series, threshold)
                caught += sum(lead is not None for lead in leads)
                breaks += len(leads)
                days += endpoint_days([series]) * _GATE_DAYS_PER_DAY
    precision = average_precision(np.concatenate(y), np.concatenate(risk))
    return Judged(precision, caught / breaks if breaks else None, false / days)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the evaluation; 0 when it ran, 3 when the data is not there."""
    parser = argparse.ArgumentParser(prog="python -m bench.smd", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="the Parquet files (default: %(default)s)")
    folder: Path = parser.parse_args(arguments).folder
    missing = [m for m in MACHINES if not (folder / f"{m}_test.parquet").exists()]
    if missing:
        sys.stderr.write(f"{folder}: no data of {', '.join(missing)}; nothing was measured\n")
        return 3
    records = prepare(folder)
    folds = [fold_of(records, number) for number in range(_FOLDS)]
    figures = {
        machine or "all": {name: judged(folds, machine, name) for name in (MODEL, LEVEL, Z, SERVED)}
        for machine in (*MACHINES, None)
    }
    _show(figures, folds)
    _OUTPUT.parent.mkdir(exist_ok=True)
    text = {
        "figures": {machine: {name: asdict(one) for name, one in own.items()} for machine, own in figures.items()},
        "served": [fold.served for fold in folds],
        "reasons": [fold.reasons for fold in folds],
    }
    _OUTPUT.write_text(json.dumps(text, indent=1) + "\n")
    return 0


def _show(figures: Mapping[str, Mapping[str, Judged]], folds: Sequence[Fold]) -> None:
    console = Console(width=150)
    table = Table(title="Average precision (share caught, false alarms a day) on the test halves", box=box.SIMPLE_HEAD)
    for heading in ("machine", MODEL, LEVEL, Z, SERVED, "who served"):
        table.add_column(heading)
    for machine, own in figures.items():
        who = ", ".join(fold.served.get(machine, "") for fold in folds).strip(", ")
        table.add_row(machine, *(_cell(own[name]) for name in (MODEL, LEVEL, Z, SERVED)), who)
    console.print(table)
    for number, fold in enumerate(folds, 1):
        for machine, reason in fold.reasons.items():
            console.print(f"days {number}, {machine}: {fold.served[machine]}, because {reason}", highlight=False)
    level = figures["all"][LEVEL].average_precision
    if level:
        ratio = {name: (one.average_precision or 0.0) / level for name, one in figures["all"].items()}
        told = ", ".join(f"{name} {value:.2f} ×" for name, value in ratio.items())
        console.print(f"against the level rule, all machines: {told}", highlight=False)


def _cell(judged: Judged) -> str:
    if judged.average_precision is None:
        return "no break"
    return f"{judged.average_precision:.3f} ({judged.caught or 0.0:.2f}, {judged.false_per_day:.1f})"


if __name__ == "__main__":
    sys.exit(main())
