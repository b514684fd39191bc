"""Query results for eyes and for programs: rich tables and plain dictionaries.

Rule of this file: no figure is computed here. A figure that has no value is shown as a dash and is null in JSON.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from analytics.queries import Alarm, Failover, ForecastReport, ProviderReport, Summary, UsageReport

Row = Alarm | Failover | ForecastReport | ProviderReport | Summary | UsageReport

_NONE = "–"


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as dictionaries that `json.dumps` takes, with the names of the result types."""
    return [asdict(row) for row in rows]


def render_failovers(rows: Sequence[Failover]) -> Table:
    """One line per departure, with its cause and lead time."""
    table = _table("Failovers", ["start (UTC)", "endpoint", "state", "cause", "by"], ["lasted", "lead", "moved"])
    for row in rows:
        cause = f"{row.metric} {row.value:.4g} (threshold {row.threshold:.4g})" if row.metric else row.event
        lasted = "ongoing" if row.duration_s is None else _seconds(row.duration_s)
        table.add_row(
            _clock(row.start),
            row.endpoint,
            row.state,
            cause,
            row.actor,
            lasted,
            _lead(row.lead_s),
            str(row.requests_moved),
        )
    return table


def render_providers(rows: Sequence[ProviderReport]) -> Table:
    """One line per endpoint."""
    right = ["requests", "share", "attempts", "success", "TTFT p50/p95/p99 ms", "latency p50/p95/p99 ms", "cost $"]
    table = _table("Endpoints", ["endpoint", "state"], [*right, "failures"])
    for row in rows:
        failures = " ".join(f"{outcome}:{count}" for outcome, count in row.outcomes.items() if outcome != "ok")
        table.add_row(
            row.endpoint,
            row.state or _NONE,
            str(row.requests),
            _percent(row.share),
            str(row.attempts),
            _percent(row.success_rate),
            _triple(row.ttft_p50_ms, row.ttft_p95_ms, row.ttft_p99_ms),
            _triple(row.latency_p50_ms, row.latency_p95_ms, row.latency_p99_ms),
            f"{row.cost_usd:.4f}",
            failures or _NONE,
        )
    return table


def render_forecasts(rows: Sequence[ForecastReport]) -> Table:
    """One line per forecaster and endpoint."""
    right = ["judged", "base rate", "mean risk", "alarms", "precision", "recall", "Brier", "skill", "foreseen", "lead"]
    table = _table("Forecasts", ["endpoint", "forecaster"], right)
    for row in rows:
        table.add_row(
            row.endpoint,
            row.forecaster or _NONE,
            f"{row.judged}/{row.samples}",
            _percent(row.base_rate),
            f"{row.mean_risk:.3f}",
            str(row.alarms),
            _percent(row.precision),
            _percent(row.recall),
            _NONE if row.brier is None else f"{row.brier:.4f}",
            _NONE if row.brier_skill is None else f"{row.brier_skill:.2f}",
            f"{row.onsets_foreseen}/{row.onsets}",
            _lead(row.median_lead_s),
        )
    return table


def render_alarms(rows: Sequence[Alarm]) -> Table:
    """One line per alarm: the groups that raised the risk, with the figures behind them."""
    table = _table("Alarms", ["time", "endpoint", "may", "raised by", "figures (normal)"], ["risk"])
    for row in rows:
        raised = [reason for reason in row.explanation if reason.log_odds > 0][:2]
        figures = "; ".join(
            f"{name} {value:.3g} ({normal:.2g})"
            for reason in raised
            for name, (value, normal) in reason.figures.items()
        )
        groups = ", ".join(f"{reason.group} {reason.log_odds:+.1f}" for reason in raised)
        table.add_row(_clock(row.time), row.endpoint, row.alarm, groups or _NONE, figures or _NONE, f"{row.risk:.2f}")
    return table


def render_summary(row: Summary) -> Table:
    """The period as two columns of name and figure."""
    table = _table("Summary", ["figure"], ["value"])
    moved = (row.failed_over_latency_p50_ms, row.failed_over_latency_p95_ms, row.failed_over_latency_p99_ms)
    moved_ttft = (row.failed_over_ttft_p50_ms, row.failed_over_ttft_p95_ms, row.failed_over_ttft_p99_ms)
    for name, value in (
        ("requests", str(row.requests)),
        ("failed", str(row.failed)),
        ("failed over", str(row.failed_over)),
        ("endpoint departures", str(row.failovers)),
        ("latency p50/p95/p99 ms", _triple(row.latency_p50_ms, row.latency_p95_ms, row.latency_p99_ms)),
        ("  of failed-over requests", _triple(*moved)),
        ("TTFT p50/p95/p99 ms", _triple(row.ttft_p50_ms, row.ttft_p95_ms, row.ttft_p99_ms)),
        ("  of failed-over requests", _triple(*moved_ttft)),
        ("tokens in / out", f"{row.input_tokens} / {row.output_tokens}"),
        ("cost $", f"{row.cost_usd:.4f}"),
    ):
        table.add_row(name, value)
    return table


def render_usage(rows: Sequence[UsageReport]) -> Table:
    """One line per payer and server."""
    table = _table("Usage", ["tenant", "agent", "model", "provider"], ["requests", "tokens in", "out", "USD"])
    for row in rows:
        figures = (str(row.requests), str(row.input_tokens), str(row.output_tokens), f"{row.cost_usd:.6f}")
        table.add_row(row.tenant or _NONE, row.agent or _NONE, row.model, row.provider, *figures)
    return table


def render_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """The result of an analyst's own SQL."""
    table = _table(None, list(columns), [])
    for row in rows:
        # Text, not markup: a JSON list would vanish as an unknown style.
        table.add_row(*(Text(_NONE if value is None else str(value)) for value in row))
    return table


def _table(title: str | None, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right")
    return table


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 600 else f"{value / 60:.0f} min"


def _lead(value: float | None) -> str:
    return _NONE if value is None else f"{value:+.1f} s"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _triple(*values: float | None) -> str:
    return " / ".join(_NONE if value is None else f"{value:.0f}" for value in values)
