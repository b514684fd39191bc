"""What the history says about the run, on the story's clock.

The rule of this file: everything is read from the history that the service wrote, through the same views that analysts
use. Nothing the demo saw itself goes in. Times are seconds of the story: 0 is when the scenario's clock started.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from analytics import queries
from analytics.queries import Failover, ForecastReport, ProviderReport, Summary
from analytics.store import connect
from sim.demo.run import Run
from sim.demo.story import Story


@dataclass(frozen=True, slots=True)
class Move:
    """A change of one endpoint's health."""

    t_s: float
    endpoint: str
    before: str
    after: str
    event: str
    metric: str
    value: float
    threshold: float
    actor: str

    @property
    def cause(self) -> str:
        """What crossed which threshold."""
        return f"{self.metric} {self.value:.3g} (threshold {self.threshold:.3g})"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The history of one run.

    `choices` are (when, endpoint) of the first decision of each chat request; `risks` and `ttfts_ms` are (when, value)
    by endpoint; `rows` counts the requests recorded under each request id.
    """

    summary: Summary
    failovers: tuple[Failover, ...]
    providers: tuple[ProviderReport, ...]
    forecasts: tuple[ForecastReport, ...]
    moves: tuple[Move, ...]
    choices: tuple[tuple[float, str], ...]
    risks: Mapping[str, tuple[tuple[float, float], ...]]
    ttfts_ms: Mapping[str, tuple[tuple[float, float], ...]]
    rescued_s: tuple[float, ...]
    rows: Mapping[str, int]

    def moves_of(self, endpoint: str) -> list[Move]:
        """The changes of one endpoint's health, oldest first."""
        return [move for move in self.moves if move.endpoint == endpoint]

    def share(self, endpoint: str, since_s: float, until_s: float) -> float | None:
        """Share of first decisions in [since_s, until_s) that chose `endpoint`; None without decisions."""
        chosen = [one for t_s, one in self.choices if since_s <= t_s < until_s]
        return chosen.count(endpoint) / len(chosen) if chosen else None


def read_evidence(history: Path, story: Story, run: Run) -> Evidence:
    """Read what a run has left in `history`."""
    since, until = run.started, run.ended + 1.0
    alarm = {} if run.threshold is None else {"threshold": run.threshold}
    chat = {"model": story.chat, "began": run.began}
    with connect(history) as connection:
        return Evidence(
            summary=queries.summary(connection, since, until),
            failovers=tuple(f for f in queries.failovers(connection, since, until) if f.model == story.chat),
            providers=tuple(p for p in queries.providers(connection, since, until) if p.model == story.chat),
            forecasts=tuple(queries.forecasts(connection, since, until, **alarm)),
            moves=tuple(Move(*row) for row in _rows(connection, _MOVES, chat)),
            choices=tuple(_rows(connection, _CHOICES, chat)),
            risks=_by_endpoint(_rows(connection, _RISKS, chat)),
            ttfts_ms=_by_endpoint(_rows(connection, _TTFTS, chat)),
            rescued_s=tuple(t_s for (t_s,) in _rows(connection, _RESCUED, chat)),
            rows=dict(_rows(connection, _REQUESTS, {})),
        )


_MOVES = """
    SELECT unix_s(time) - $began, endpoint, from_state, to_state, event, metric, value, threshold, actor
    FROM transitions WHERE model = $model ORDER BY time, snapshot_version"""
_CHOICES = """
    SELECT unix_s(time) - $began, chosen FROM decisions
    WHERE model = $model AND number = 1 AND chosen <> '' ORDER BY time"""
_RISKS = """
    SELECT endpoint, unix_s(time) - $began, risk FROM health
    WHERE model = $model AND risk IS NOT NULL ORDER BY time"""
_TTFTS = """
    SELECT endpoint, unix_s(time) - $began, ttft_ms FROM attempts
    WHERE model = $model AND ttft_ms IS NOT NULL AND outcome = 'ok' ORDER BY time"""
_RESCUED = """
    SELECT unix_s(time) - $began FROM requests
    WHERE model = $model AND failed_over AND status = 'ok' ORDER BY time"""
_REQUESTS = "SELECT request_id, count(*) FROM requests GROUP BY request_id"


def _rows(connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any]) -> list[Any]:
    return connection.execute(query, dict(parameters)).fetchall()


def _by_endpoint(rows: list[tuple[str, float, float]]) -> dict[str, tuple[tuple[float, float], ...]]:
    found: dict[str, list[tuple[float, float]]] = {}
    for endpoint, t_s, value in rows:
        found.setdefault(endpoint, []).append((t_s, value))
    return {endpoint: tuple(points) for endpoint, points in found.items()}
