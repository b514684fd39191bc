"""The `routecast` command. Exit codes: 0 done, 1 it failed, 2 the input was wrong."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import grpc
import uvloop
from cyclopts import App, CycloptsError, Parameter
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from rich.console import Console
from rich.table import Table

from analytics import queries, report
from analytics.errors import HistoryError
from analytics.sandbox import run_sql
from analytics.store import connect
from service.config import Config
from service.config_file import ConfigError, load
from service.main import Ports, serve

app = App(
    name="routecast",
    help="Decides which provider serves each AI request, and moves traffic before a provider fails.",
    version_flags=["--version"],
)
analytics = App(name="analytics", help="Tables from the history.")
app.command(analytics)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_OUT = Console(width=None if sys.stdout.isatty() else 160)
_ERR = Console(stderr=True)

Data = Annotated[Path, Parameter(help="The service's data_dir.")]
Since = Annotated[str, Parameter(help="How far back: 90s, 15m, 6h or 30d.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]


class _InputError(Exception):
    """The command's input was wrong."""


class _FailureError(Exception):
    """The command could not do its work."""


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if not match:
        raise _InputError(f"--since {text!r}: expected a number and a unit, for example 90s, 15m, 6h or 30d")
    return float(match[1]) * _UNITS[match[2]]


@app.command(name="serve")
def serve_command(
    *,
    config: Annotated[Path, Parameter(help="The configuration file.")],
    ports_file: Annotated[Path | None, Parameter(help="Write the bound ports there as JSON, once serving.")] = None,
) -> None:
    """Serve gRPC and the OpenAI-compatible HTTP edge until SIGTERM."""
    settings = load(config)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )

    def announce(ports: Ports) -> None:
        grpc_host, http_host = (address.rpartition(":")[0] for address in (settings.server.grpc, settings.server.http))
        _ERR.print(f"serving gRPC on {grpc_host}:{ports.grpc} and HTTP on http://{http_host}:{ports.http}/v1")
        if ports_file is not None:
            temporary = ports_file.with_suffix(".tmp")
            temporary.write_text(json.dumps({"grpc": ports.grpc, "http": ports.http}))
            temporary.replace(ports_file)

    uvloop.run(serve(settings, announce))


@app.command(name="check-config")
def check_config(config: Annotated[Path, Parameter(help="The configuration file.")]) -> None:
    """Validate a configuration file without starting anything."""
    settings = load(config)
    endpoints = len(settings.catalogue().endpoints)
    _OUT.print(
        f"{config}: valid; {len(settings.providers)} providers, {len(settings.models)} models, {endpoints} endpoints"
    )


@app.command(name="schema")
def schema_command() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    sys.stdout.write(json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n")


def _show(
    data: Path, since: str, question: Callable[..., Any], render: Callable[[Any], Table], *, as_json: bool
) -> None:
    until = time.time()
    with connect(data / "history") as connection:
        answer = question(connection, until - _seconds(since), until)
    if as_json:
        rows = report.as_dicts(answer if isinstance(answer, Sequence) else [answer])
        sys.stdout.write(json.dumps(rows, indent=2, default=str) + "\n")
    else:
        _OUT.print(render(answer))


@app.command
def health(
    *,
    address: Annotated[str, Parameter(help="The gRPC server, host:port.")] = "127.0.0.1:50051",
    timeout_s: float = 3.0,
) -> None:
    """Ask a service for its health; exit with 1 unless it is serving. For container health checks."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise _FailureError(f"{address}: {error.details()}") from error
    name = HealthCheckResponse.ServingStatus.Name(answer.status)
    _OUT.print(f"{address}: {name}")
    if answer.status != HealthCheckResponse.SERVING:
        raise SystemExit(1)


@analytics.command
def failovers(*, data: Data = Path("data"), since: Since = "24h", as_json: AsJson = False) -> None:
    """Every departure of an endpoint: cause, lead time, duration, requests moved."""
    _show(data, since, queries.failovers, report.render_failovers, as_json=as_json)


@analytics.command
def providers(*, data: Data = Path("data"), since: Since = "24h", as_json: AsJson = False) -> None:
    """Every endpoint: requests, success, outcomes, latency, share, cost."""
    _show(data, since, queries.providers, report.render_providers, as_json=as_json)


@analytics.command
def forecasts(*, data: Data = Path("data"), since: Since = "24h", as_json: AsJson = False) -> None:
    """How good the forecasts were: precision, recall, Brier skill, lead time."""
    _show(data, since, queries.forecasts, report.render_forecasts, as_json=as_json)


@analytics.command
def summary(*, data: Data = Path("data"), since: Since = "24h", as_json: AsJson = False) -> None:
    """All requests together: failed, failed over, latency, cost."""
    _show(data, since, queries.summary, report.render_summary, as_json=as_json)


@app.command
def sql(
    text: Annotated[str, Parameter(help="A query over requests, attempts, decisions, health and transitions.")],
    *,
    data: Data = Path("data"),
    as_json: AsJson = False,
) -> None:
    """Run a read-only query over the history."""
    with connect(data / "history") as connection:
        columns, rows = run_sql(connection, text)
    if as_json:
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        sys.stdout.write(json.dumps(found, indent=2, default=str) + "\n")
    else:
        _OUT.print(report.render_rows(columns, rows))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    try:
        app(arguments, exit_on_error=False, print_error=True)
    except (ConfigError, _InputError) as error:
        _ERR.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except CycloptsError:
        sys.exit(2)
    except (HistoryError, OSError, _FailureError) as error:
        _ERR.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
