"""`routecast analytics …` and `routecast sql`: tables from the history, while the service writes it."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import duckdb
from cyclopts import Parameter
from rich.table import Table

from analytics import queries, report
from analytics.errors import QueryTimeoutError
from analytics.sandbox import run_sql
from analytics.store import connect
from service.commands.common import ERR, OUT, AsJson, Data, FailureError, InputError, Since, seconds

_DATA = Path("data")


def _show(
    data: Path, since: str, question: Callable[..., Any], render: Callable[[Any], Table], *, as_json: bool
) -> None:
    until = time.time()
    with connect(data / "history") as connection:
        answer = question(connection, until - seconds(since), until)
    if as_json:
        _print_json(report.as_dicts(answer if isinstance(answer, Sequence) else [answer]))
    else:
        OUT.print(render(answer))


def _print_json(rows: Sequence[dict[str, Any]]) -> None:
    sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")


def failovers(*, data: Data = _DATA, since: Since = "24h", as_json: AsJson = False) -> None:
    """Every departure of an endpoint: cause, lead time, duration, requests moved."""
    _show(data, since, queries.failovers, report.render_failovers, as_json=as_json)


def providers(*, data: Data = _DATA, since: Since = "24h", as_json: AsJson = False) -> None:
    """Every endpoint: requests, success, outcomes, latency, share, cost."""
    _show(data, since, queries.providers, report.render_providers, as_json=as_json)


def forecasts(*, data: Data = _DATA, since: Since = "24h", as_json: AsJson = False) -> None:
    """How good the forecasts were: precision, recall, Brier skill, lead time."""
    _show(data, since, queries.forecasts, report.render_forecasts, as_json=as_json)


def alarms(*, data: Data = _DATA, since: Since = "24h", as_json: AsJson = False) -> None:
    """Every alarm of the forecast: what raised the risk, and what the alarm might do."""
    _show(data, since, queries.alarms, report.render_alarms, as_json=as_json)


def summary(*, data: Data = _DATA, since: Since = "24h", as_json: AsJson = False) -> None:
    """All requests together: failed, failed over, latency, cost."""
    _show(data, since, queries.summary, report.render_summary, as_json=as_json)


def usage(*, data: Data = _DATA, since: Since = "24h", as_json: AsJson = False) -> None:
    """The ledger: what was served and what it cost, by tenant, agent, model and provider."""
    _show(data, since, queries.usage, report.render_usage, as_json=as_json)


def sql(
    text: Annotated[str, Parameter(help="A read-only query over the streams of the history.")],
    *,
    data: Data = _DATA,
    as_json: AsJson = False,
    rows: Annotated[int, Parameter(help="At most so many rows are shown.")] = 10_000,
    timeout: Annotated[str, Parameter(help="How long the query may take: 90s or 15m.")] = "60s",
) -> None:
    """Run a read-only query over the history."""
    timeout_s = seconds(timeout, "--timeout")
    if rows < 1 or timeout_s <= 0:
        raise InputError(f"--rows {rows} --timeout {timeout}: expected at least one row and some time")
    with connect(data / "history") as connection:
        try:
            answer = run_sql(connection, text, most_rows=rows, timeout_s=timeout_s)
        except duckdb.Error as error:
            raise InputError(str(error)) from error
        except QueryTimeoutError as error:
            raise FailureError(f"{error}: ask for less, or give it more --timeout") from error
    if as_json:
        _print_json([dict(zip(answer.columns, row, strict=True)) for row in answer.rows])
    else:
        OUT.print(report.render_rows(answer.columns, answer.rows))
    if answer.cut:
        ERR.print(f"the first {rows} rows of more: --rows sets how many", highlight=False)
