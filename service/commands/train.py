"""`routecast train`."""

import time
from pathlib import Path

from rich.table import Table

from scoring import job
from scoring.artifact import ArtifactError
from service.commands.common import OUT, Data, FailureError, Since, seconds

_DATA = Path("data")


def train(*, data: Data = _DATA, since: Since = "30d", seed: int = 0) -> None:
    """Retrain the forecaster on the history; a running service picks the result up, if it is better."""
    until = time.time()
    try:
        report = job.train(data, since=until - seconds(since), until=until, seed=seed)
    except ArtifactError as error:
        raise FailureError(str(error)) from error
    OUT.print(f"{report.verdict.value}: {report.reason}", soft_wrap=True)
    OUT.print(f"serving {report.version}", soft_wrap=True)
    if report.candidate is not None and report.champion is not None:
        table = Table(title="On the same held-out part of the history", title_justify="left")
        for column in ("", "candidate", "champion"):
            table.add_column(column, justify="right" if column else "left")
        for name in ("rows", "base_rate", "pr_auc", "brier", "brier_skill"):
            table.add_row(name, *(f"{getattr(skill, name):.4g}" for skill in (report.candidate, report.champion)))
        OUT.print(table)
