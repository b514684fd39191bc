"""`routecast thresholds …`: proposals from replayed history, and their way into force and back."""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.table import Table

from analytics.store import connect
from routing.errors import PolicyError
from scoring.threshold_store import Change, ThresholdStore, ThresholdStoreError, loaded
from scoring.thresholds import Objective, Step, Value, step_to, written
from service.commands.common import OUT, AsJson, FailureError, InputError
from service.commands.replaying import (
    Days,
    Hours,
    MaybeConfig,
    MaybeData,
    Standing,
    data_dir_of,
    read_all_hours,
    shown,
    standing,
)
from service.config import Tuning as Settings
from service.config_file import load
from sim import scorecard
from sim.arena.scenario import load_scenarios
from sim.replay.backtest import Hourly
from sim.replay.play import Simulated
from sim.replay.tuner import Aim, Trial, Tuning, tune
from sim.replay.tuner import Hours as Worlds
from sim.scorecard.tuning import CALIBRATION_SEEDS

_SCENARIOS = Path(scorecard.__file__).parent / "scenarios"
# One world of each kind of trouble; the seeds no evaluation uses.
_SEEDS = CALIBRATION_SEEDS[:1]
_TUNER, _OPERATOR = "tuner", "operator"

By = Annotated[str, Parameter(help="Who decides, for the record.")]


def propose(
    *,
    config: MaybeConfig = None,
    data: MaybeData = None,
    days: Days = 30.0,
    hours: Hours = 200,
    worlds: Annotated[Path, Parameter(help="Directory of simulated scenarios that must not get worse.")] = _SCENARIOS,
    step: Annotated[str, Parameter(help="Judge only this change, as name=value (lists as 0.1,0.3,0.6).")] = "",
    jobs: Annotated[int, Parameter(help="Processes.")] = 2,
) -> None:
    """Replay the history under every single step of the thresholds; propose the best one that is certified safe.

    With `tuning.mode: apply` in the configuration it is applied at once.
    """
    service = standing(config, data)
    settings = service.config.tuning if service.config else Settings()
    steps = [_asked(service, step)] if step else None
    with connect(service.data_dir / "history", threads=1) as connection:
        since, until, all_hours = read_all_hours(connection, service, days, hours)
    if not all_hours:
        return
    simulated = tuple(Simulated(scenario) for scenario in load_scenarios(worlds))
    aim = Aim(Objective(settings.needless_weight, settings.switch_weight), settings.false_failovers_per_day)
    with shown() as progress:
        tuning = tune(
            _worlds(all_hours), Worlds(simulated, ("simulated",) * len(simulated)), _SEEDS,
            service.in_force.policy, service.model, aim, steps=steps, jobs=jobs, progress=progress,
        )  # fmt: skip
    if tuning.trials:
        OUT.print(_trials(tuning))
    OUT.print(tuning.reason, soft_wrap=True, highlight=False)
    # A step that somebody asked for is put on record with whatever speaks against it.
    trial = tuning.chosen or (tuning.trials[0] if step and tuning.trials else None)
    if trial is None:
        return
    now = time.time()
    change = service.store.propose(
        service.configured,
        {trial.step.name: trial.step.after},
        made=now,
        by=_OPERATOR if step else _TUNER,
        before=tuning.now,
        after=trial.figures,
        evidence=_evidence(service, trial, aim, all_hours, (since, until)),
        note=trial.objection,
    )
    OUT.print(f"proposed {change.id}: {trial.step}", soft_wrap=True, highlight=False)
    if settings.mode == "apply" and not step:
        try:
            service.store.apply(change.id, now=now, by=_TUNER, automatic=True, most_per_day=settings.changes_per_day)
        except ThresholdStoreError as error:
            OUT.print(f"not applied: {error}", soft_wrap=True, highlight=False)
        else:
            OUT.print(f"applied {change.id}", soft_wrap=True, highlight=False)


def _asked(service: Standing, step: str) -> Step:
    name, equals, text = step.partition("=")
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not equals or not numbers:
        raise InputError(f"--step {step!r}: expected name=value, for example reflex.failing_rate=0.4")
    value: Value = numbers if name == "failback.steps" else numbers[0]
    model_threshold = service.model.manifest.threshold if service.model else None
    try:
        return step_to(service.in_force.policy, model_threshold, name.strip(), value)
    except PolicyError as error:
        raise InputError(f"--step {step!r}: {error}") from error


def _worlds(all_hours: list[Hourly]) -> Worlds:
    playables = tuple(one for hourly in all_hours for one in hourly.chronicles)
    strata = tuple((hourly.recorded.model, e) for hourly in all_hours for e in hourly.chosen.eventful)
    return Worlds(playables, strata)


def _evidence(
    service: Standing, trial: Trial, aim: Aim, all_hours: list[Hourly], period: tuple[float, float]
) -> dict[str, Any]:
    chronicles = [one for hourly in all_hours for one in hourly.chronicles]
    return {
        "since": period[0],
        "until": period[1],
        "hours": sum(one.span.end - one.span.begin for one in chronicles) / 3600,
        "requests": sum(len(one.demand.failed) for one in chronicles),
        "model": service.model.manifest.version if service.model else "",
        "false_failovers": trial.count.events,
        "provider_days": trial.count.provider_days,
        "upper_bound_per_day": trial.count.upper_bound,
        "budget_per_day": aim.budget_per_day,
        "gain": asdict(trial.gain),
        "simulated_gain": asdict(trial.simulated_gain),
        "objective": asdict(aim.objective),
    }


def apply(change: str, *, data: MaybeData = None, config: MaybeConfig = None, by: By = _OPERATOR) -> None:
    """Put a proposal in force; running services take it over within a second."""
    try:
        done = _store(config, data).apply(change, now=time.time(), by=by)
    except ThresholdStoreError as error:
        raise FailureError(str(error)) from error
    OUT.print(f"in force: {done.id} ({_moves(done)})", soft_wrap=True, highlight=False)


def rollback(*, data: MaybeData = None, config: MaybeConfig = None) -> None:
    """Take the change in force back, so that what was before it holds again."""
    try:
        gone = _store(config, data).rollback(now=time.time())
    except ThresholdStoreError as error:
        raise FailureError(str(error)) from error
    OUT.print(f"rolled back {gone.id}; in force: {gone.parent or 'the configuration'}", soft_wrap=True, highlight=False)


def list_changes(*, data: MaybeData = None, config: MaybeConfig = None, as_json: AsJson = False) -> None:
    """Every change of thresholds: what, when, why, by whom, and where it stands."""
    try:
        changes = _store(config, data).changes()
    except ThresholdStoreError as error:
        raise FailureError(str(error)) from error
    if as_json:
        sys.stdout.write(json.dumps([asdict(change) for change in changes], indent=1) + "\n")
        return
    table = Table(title="Changes of thresholds", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in (
        "change",
        "status",
        "what",
        "bad /1k",
        "false failovers /day, at most",
        "made by",
        "applied",
        "after",
    ):
        table.add_column(heading)
    for change in changes:
        table.add_row(
            change.id, change.status.value, _moves(change),
            f"{_number(change.before.get('bad_per_1k'))} → {_number(change.after.get('bad_per_1k'))}",
            _number(change.evidence.get("upper_bound_per_day")), change.by,
            "–" if change.applied is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(change.applied)),
            change.parent or "the configuration",
        )  # fmt: skip
    OUT.print(table)


def _store(config: Path | None, data: Path | None) -> ThresholdStore:
    # Not by what is in force: a change that this code refuses has to be taken back, too.
    return ThresholdStore(data_dir_of(load(config) if config else None, data))


def _moves(change: Change) -> str:
    moves: Mapping[str, tuple[Any, Any]] = change.changed
    return ", ".join(f"{n}: {written(loaded(a))} → {written(loaded(b))}" for n, (a, b) in moves.items())


def _trials(tuning: Tuning) -> Table:
    days = tuning.now_count.provider_days
    title = f"Steps, judged on {days:.2f} provider-days that did not choose them"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for heading in (
        "step", "bad /1k", "failed /1k", "needless %", "switches /day", "gain, 95 %", "in simulated worlds",
        "false failovers", "at most /day", "objection",
    ):  # fmt: skip
        table.add_column(heading)
    table.add_row("(in force)", *_before_or_after(tuning.now), "", "", str(tuning.now_count.events),
                  _number(tuning.now_count.upper_bound), "")  # fmt: skip
    for trial in tuning.trials:
        gain, simulated = trial.gain, trial.simulated_gain
        table.add_row(
            str(trial.step), *_before_or_after(trial.figures),
            f"{_number(gain.mean)} [{_number(gain.low)}, {_number(gain.high)}]", _number(simulated.mean),
            str(trial.count.events), _number(trial.count.upper_bound), trial.objection,
        )  # fmt: skip
    return table


def _before_or_after(figures: Mapping[str, float | None]) -> tuple[str, ...]:
    needless = figures["needless_diversion"]
    shares = figures["bad_per_1k"], figures["failed_per_1k"], None if needless is None else 100 * needless
    return tuple(_number(value) for value in (*shares, figures["switches_per_day"]))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
