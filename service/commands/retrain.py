"""`routecast retrain` and `routecast models …`: the scheduled job, and what an operator may do with its results."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from analytics.files import AtomicFile
from analytics.records import ModelEventRecord
from analytics.segments import SegmentWriter
from scoring import job
from scoring.artifact import ArtifactError
from scoring.gate import GateReport
from scoring.registry import Registry
from scoring.report import page
from service.commands.common import ERR, OUT, Data, FailureError, Since, seconds

_DATA = Path("data")
_STEPS = 9

_Version = Annotated[str, Parameter(help="Version of a model, as `routecast models list` shows it.")]


def retrain(
    *,
    data: Data = _DATA,
    since: Since = "30d",
    seed: Annotated[int, Parameter(help="Seed of the fit.")] = 0,
    block: Annotated[str, Parameter(help="Unit of the bootstrap in the gate.")] = "1d",
    watch: Annotated[str, Parameter(help="How long a candidate is watched as a shadow; 0s promotes at once.")] = "1d",
) -> None:
    """Retrain the forecaster on the history, once; a running service picks up what passed the gate.

    Safe to run from cron: one run at a time, and a run that is interrupted changes nothing.
    """
    until = time.time()
    settings = job.Settings(block_s=seconds(block, "--block"), shadow_s=seconds(watch, "--watch"), seed=seed)
    try:
        with _progress() as told:
            report = job.retrain(data, since=until - seconds(since), until=until, settings=settings, progress=told)
            told("write the report")
            target = data / "reports" / f"retrain-{int(until)}.html"
            with AtomicFile(target) as temporary:
                temporary.write_text(page(report, until - seconds(since), until), encoding="utf-8")
    except (ArtifactError, job.BusyError) as error:
        raise FailureError(str(error)) from error
    OUT.print(f"{report.verdict.value}: {report.reason}", soft_wrap=True, highlight=False)
    if report.shadow_note:
        OUT.print(f"shadow: {report.shadow_note}", soft_wrap=True, highlight=False)
    OUT.print(f"serving {report.champion}", soft_wrap=True, highlight=False)
    if report.gate is not None:
        OUT.print(_comparisons(report.gate))
    ERR.print(f"report: {target}", soft_wrap=True, highlight=False)


class _progress:  # noqa: N801  # reads as a function: `with _progress() as told`
    """A bar on a terminal; one line per step where nobody watches, as under cron."""

    def __init__(self) -> None:
        self._bar = Progress(TextColumn("{task.description:<28}"), BarColumn(), TimeElapsedColumn(), console=ERR)
        self._task = self._bar.add_task("retrain", total=_STEPS)

    def __enter__(self) -> Callable[[str], None]:
        if not sys.stderr.isatty():
            return lambda step: print(step, file=sys.stderr, flush=True)  # noqa: T201  # the log of a scheduled run
        self._bar.start()
        return lambda step: self._bar.update(self._task, description=step, advance=1)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _comparisons(gate: GateReport) -> Table:
    table = Table(title="Seconds of warning per endpoint-day, on later data", title_justify="left")
    for column in ("against", "candidate", "rival", "difference", "90 % of blocks"):
        table.add_column(column, justify="left" if column == "against" else "right")
    for c in gate.comparisons:
        interval = f"{c.low:+.1f} … {c.high:+.1f}"
        table.add_row(c.rival, f"{c.own:.1f}", f"{c.other:.1f}", f"{c.difference:+.1f}", interval)
    return table


def list_models(*, data: Data = _DATA) -> None:
    """Show the models of a service and their roles."""
    registry = Registry(data)
    try:
        found, roles, champion = registry.versions(), registry.roles(), registry.champion()
    except ArtifactError as error:
        raise FailureError(str(error)) from error
    serving = champion.model.manifest.version if champion.model else "nobody: the reflex stands alone"
    OUT.print(f"serving {serving}", highlight=False)
    if not found:
        return
    table = Table()
    for column in ("version", "role", "kind", "trained", "Brier skill", "PR-AUC", "threshold", "parent"):
        table.add_column(column)
    for manifest, role in found:
        trained = time.strftime("%Y-%m-%d %H:%M", time.gmtime(manifest.trained_at)) if manifest.trained_at else "–"
        figures = (f"{value:.3f}" if value is not None else "–" for value in
                   (manifest.skill.brier_skill, manifest.skill.pr_auc))  # fmt: skip
        shown = role.value + (" (stopped)" if roles.floored and manifest.version == roles.champion else "")
        table.add_row(
            manifest.version, shown, manifest.kind, trained, *figures, f"{manifest.threshold:g}", manifest.parent or "–"
        )
    OUT.print(table)


def promote(version: _Version, *, data: Data = _DATA) -> None:
    """Let a model serve, without the gate; a running service takes it over within a tick."""
    registry = Registry(data)
    try:
        before = registry.champion().model
        registry.promote(version)
    except ArtifactError as error:
        raise FailureError(str(error)) from error
    _record(data, "promoted", version, before.manifest.version if before else "")
    OUT.print(f"serving {version}", highlight=False)


def roll_back(*, data: Data = _DATA) -> None:
    """Take the serving model out of service: the one before it serves, at the end nobody but the reflex."""
    registry = Registry(data)
    try:
        serving = registry.champion().model
        after = registry.roll_back(serving.manifest.version) if serving else None
        if serving is None or after is None:
            raise FailureError("no model serves: the reflex stands alone already")
        now = "" if after.floored else (after.champion or registry.prior().manifest.version)
    except ArtifactError as error:
        raise FailureError(str(error)) from error
    _record(data, "floored" if after.floored else "rolled_back", serving.manifest.version, now)
    OUT.print(f"serving {now}" if now else "no forecast is made; the reflex stands alone", highlight=False)


def _record(data: Path, event: str, version: str, other: str) -> None:
    writer = SegmentWriter(data / "history", "operator", time.time_ns())
    try:
        record = ModelEventRecord(
            replica="operator", time=time.time(), event=event, version=version, other=other, metric="", value=None,
            threshold=None, actor="operator", note="",
        )  # fmt: skip
        writer.write(ModelEventRecord.stream, [record])
    finally:
        writer.close()
