"""Typed answers to the questions operators and analysts ask of history.

Rule of this file: the SQL stands in `sql/<name>.sql`, one file per question; a row becomes a frozen value whose
fields have the names of the SQL's columns. A period is [since, until) in unix seconds. Figures without evidence are
None, never 0 or 1.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any, TypeVar

import duckdb

from analytics.errors import HistoryError

DEPARTED_STATES = ("degraded", "ejected")
QUOTA_EVENT = "limited"

_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Failover:
    """An endpoint left service at `start` and was active again at `end` (None: not yet).

    `lead_s`: seconds from the departure to the endpoint's first failure within the 300 s after it; negative when
    failures of the 30 s before had already shown it (then, since the first of them); None when no failure was seen at
    all. `requests_moved`: requests others served beyond what this endpoint's share in the 300 s before would have
    left them.
    """

    endpoint: str
    provider: str
    region: str
    model: str
    state: str
    metric: str
    value: float
    threshold: float
    actor: str
    event: str
    note: str
    start: float
    end: float | None
    duration_s: float | None
    lead_s: float | None
    requests_moved: int


@dataclass(frozen=True, slots=True)
class ProviderReport:
    """One endpoint over a period. `share` of all served requests, `success_rate` of attempts that say something, both
    in [0, 1].

    `attempts`, `outcomes` and percentiles leave probes out; percentiles are over successes.
    """

    endpoint: str
    provider: str
    region: str
    model: str
    state: str
    requests: int
    share: float
    attempts: int
    probes: int
    success_rate: float | None
    outcomes: Mapping[str, int]
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    cost_usd: float


@dataclass(frozen=True, slots=True)
class ForecastReport:
    """One forecaster on one endpoint. `judged` of the `samples` had evidence afterwards; all rates are over those.

    `brier_skill` is relative to always forecasting `base_rate` (1 is perfect, 0 no better). `onsets` counts the
    beginnings of degradation, `onsets_foreseen` those with an alarm in the 300 s before.
    """

    endpoint: str
    forecaster: str
    samples: int
    judged: int
    mean_risk: float
    base_rate: float | None
    alarms: int
    precision: float | None
    recall: float | None
    brier: float | None
    brier_skill: float | None
    onsets: int
    onsets_foreseen: int
    median_lead_s: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """A period in one row.

    Percentiles are over served requests; `failed_over_*` over those that needed a second endpoint.
    """

    requests: int
    failed: int
    failed_over: int
    failovers: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    ttft_p99_ms: float | None
    failed_over_latency_p50_ms: float | None
    failed_over_latency_p95_ms: float | None
    failed_over_latency_p99_ms: float | None
    failed_over_ttft_p50_ms: float | None
    failed_over_ttft_p95_ms: float | None
    failed_over_ttft_p99_ms: float | None
    input_tokens: int
    output_tokens: int
    cost_usd: float


@dataclass(frozen=True, slots=True)
class UsageReport:
    """The ledger's entries of one tenant, agent, model and provider; `uncounted`: those without token counts."""

    tenant: str
    agent: str
    model: str
    provider: str
    requests: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    uncounted: int


@dataclass(frozen=True, slots=True)
class Reason:
    """What one group of features added to the log-odds of an alarm, with (value, normal value) of its figures."""

    group: str
    log_odds: float
    figures: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that began at `time` (unix seconds) at this risk.

    `alarm`: act, or canary when it might move a tenth only; `propensity`: probability with which that was drawn.
    """

    time: float
    endpoint: str
    provider: str
    forecaster: str
    risk: float
    alarm: str
    propensity: float
    explanation: tuple[Reason, ...]


def failovers(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> list[Failover]:
    """Departures of endpoints that began in the period, oldest first."""
    words = {"departed_states": list(DEPARTED_STATES), "quota_event": QUOTA_EVENT}
    return _rows(connection, Failover, "failovers", {**_period(since, until), **words})


def providers(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> list[ProviderReport]:
    """Every endpoint seen in the period, busiest first."""
    return _rows(connection, ProviderReport, "providers", _period(since, until))


def forecasts(
    connection: duckdb.DuckDBPyConnection,
    since: float,
    until: float,
    *,
    threshold: float = 0.5,
    horizon_s: float = 60.0,
) -> list[ForecastReport]:
    """How each forecaster did on each endpoint; an alarm is a risk of at least `threshold` (in [0, 1])."""
    parameters = {**_period(since, until), "threshold": threshold, "horizon_s": horizon_s}
    return _rows(connection, ForecastReport, "forecasts", parameters)


def alarms(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> list[Alarm]:
    """Alarms that began in the period, oldest first."""
    return [
        Alarm(**{**row, "explanation": tuple(_reason(part) for part in json.loads(row["explanation"]))})
        for row in _records(connection, "alarms", _period(since, until))
    ]


def _reason(part: list[Any]) -> Reason:
    group, log_odds, figures = part
    return Reason(group, log_odds, {name: (value, normal) for name, value, normal in figures})


def summary(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> Summary:
    """The period in figures."""
    count = len(failovers(connection, since, until))
    values = _records(connection, "summary", _period(since, until))[0]
    return Summary(**values, failovers=count)


def usage(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> list[UsageReport]:
    """What was served and what it cost, the dearest first."""
    return _rows(connection, UsageReport, "usage", _period(since, until))


def sql_text_of(name: str) -> str:
    """The SQL of a question, as shipped."""
    return resources.files("analytics").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def utc_timestamp(seconds: float) -> datetime:
    """Unix seconds as the naive UTC datetime that a `TIMESTAMP` compares with.

    Raises `HistoryError` outside the years 1 to 9999.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError) as error:
        raise HistoryError(f"time {seconds!r}: expected unix seconds") from error


def _period(since: float, until: float) -> dict[str, Any]:
    if not since <= until:
        raise HistoryError(f"period from {since!r} until {until!r}: expected since <= until")
    return {"since": utc_timestamp(since), "until": utc_timestamp(until)}


def _records(connection: duckdb.DuckDBPyConnection, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    cursor = connection.execute(sql_text_of(name), dict(parameters))
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _rows(
    connection: duckdb.DuckDBPyConnection, kind: type[_Row], name: str, parameters: Mapping[str, Any]
) -> list[_Row]:
    return [kind(**record) for record in _records(connection, name, parameters)]
