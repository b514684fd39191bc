"""History as a replay needs it: what each endpoint did and when, and what callers asked for.

Rule of this file: observations only, as arrays. What they say about the moments between them is for `sim.replay` to
judge. Every period is [since, until) in unix seconds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from analytics.queries import DEPARTED_STATES, sql_text_of, utc_timestamp

# Requests that every endpoint would have refused: they are no demand.
CALLERS_OWN = ("INVALID_ARGUMENT", "UNKNOWN_MODEL", "UNKNOWN_PROVIDER", "CONTEXT_TOO_LONG", "UPSTREAM_REJECTED")

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
Spread = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class EndpointFacts:
    """What is normal for one endpoint.

    `ttft_ms`, `reply_ms` and `probe_ms`: 16 %, 50 % and 84 % quantile of streamed first tokens, of whole replies and of
    probes, None without any. `rates`: share of attempts that end in each of the asked outcomes in good minutes, over
    `good_attempts` of them. `usd_per_mtok`: what was paid per million tokens, None when it was not recorded.
    """

    id: str
    provider: str
    region: str
    zone: str
    attempts: int
    ttft_ms: Spread | None
    reply_ms: Spread | None
    probe_ms: Spread | None
    tokens_per_s: float | None
    usd_per_mtok: float | None
    rates: tuple[float, ...]
    good_attempts: int


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """n attempts in the order they were sent: endpoint (int64, place among those asked for), `started` (float64 unix
    seconds), `kind_of_end` (int64, 0 for a success, else 1 + place among the outcomes asked for), `probe` (bool), and
    float64 with NaN for none: `ttft_ms`, `latency_ms`, `tokens_per_s`.
    """

    endpoint: _Ints
    started: _Floats
    kind_of_end: _Ints
    probe: _Bools
    ttft_ms: _Floats
    latency_ms: _Floats
    tokens_per_s: _Floats


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """n requests by arrival (`arrived`, float64 unix seconds): tokens (float64, NaN where unknown), whether the caller
    got no whole answer then, its time to first token over all attempts (NaN without one), and what it cost.
    """

    arrived: _Floats
    input_tokens: _Floats
    output_tokens: _Floats
    failed: _Bools
    ttft_ms: _Floats
    cost_usd: _Floats


@dataclass(frozen=True, slots=True)
class Incident:
    """One endpoint (its place among those asked for) was degraded from `begin` to `end`; `outcome` is the commonest
    failure, "" when it was slow.
    """

    endpoint: int
    begin: float
    end: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Hour:
    """The hour that begins `number` × 3600 s after `since`. `eventful`: an endpoint failed, or left service."""

    number: int
    requests: int
    eventful: bool


class ReplaySource:
    """Reads one model's history. `outcomes` are the classes of failure the caller tells apart; others count as
    `outcomes[other]`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, model: str, outcomes: Sequence[str], other: int) -> None:
        self._connection = connection
        self._model = model
        self._classes = {"outcomes": list(outcomes), "other": other + 1}
        self._width = len(outcomes)

    def facts(self, since: float, until: float) -> dict[str, EndpointFacts]:
        """Return what is normal for every endpoint seen in the period, by id."""
        period = self._period(since, until)
        counts: dict[str, list[int]] = {}
        for row in self._rows("replay_rates", period | self._classes):
            counts.setdefault(row["endpoint"], [0] * (self._width + 1))[row["class"]] = row["n"]
        found = {}
        for row in self._rows("replay_endpoints", period):
            own = counts.get(row["endpoint"], [0] * (self._width + 1))
            total = sum(own)
            rates = tuple(n / total if total else 0.0 for n in own[1:])
            spreads = {
                name: None if row[name] is None else tuple(row[name]) for name in ("ttft_ms", "reply_ms", "probe_ms")
            }
            found[row["endpoint"]] = EndpointFacts(
                id=row["endpoint"], provider=row["provider"], region=row["region"], zone=row["zone"],
                attempts=row["attempts"], tokens_per_s=row["tokens_per_s"], usd_per_mtok=row["usd_per_mtok"],
                rates=rates, good_attempts=total, **spreads,
            )  # fmt: skip
        return found

    def configured_order(self, since: float, until: float) -> tuple[str, ...]:
        """Return the endpoints in the order that most of the newest undisturbed decisions had; empty without any."""
        row = self._connection.execute(
            "SELECT mode(CAST(json_extract(candidates, '$[*].endpoint') AS VARCHAR)) FROM ("
            "SELECT candidates FROM decisions WHERE model = $model AND objective = 'ordered' AND number = 1 "
            "AND propensity = 1 AND time >= $since AND time < $until ORDER BY time DESC LIMIT 1000)",
            self._period(since, until),
        ).fetchone()
        return () if row is None or row[0] is None else tuple(json.loads(row[0]))

    def observed(self, endpoints: Sequence[str], since: float, until: float) -> Observed:
        """Return the attempts sent to `endpoints` in the period, when their end is known within an hour."""
        columns = self._columns(
            "replay_attempts", self._period(since, until) | self._classes | {"endpoints": list(endpoints)}
        )
        return Observed(
            endpoint=columns["endpoint"].astype(np.int64),
            started=_floats(columns["started"]),
            kind_of_end=columns["class"].astype(np.int64),
            probe=columns["probe"].astype(np.bool_),
            ttft_ms=_floats(columns["ttft_ms"]),
            latency_ms=_floats(columns["latency_ms"]),
            tokens_per_s=_floats(columns["tokens_per_s"]),
        )

    def demand(self, since: float, until: float) -> Demand:
        """Return what callers asked for in the period, without what every endpoint would have refused."""
        columns = self._columns("replay_arrivals", self._period(since, until) | {"callers_own": list(CALLERS_OWN)})
        return Demand(
            arrived=_floats(columns["arrived"]),
            input_tokens=_floats(columns["input_tokens"]),
            output_tokens=_floats(columns["output_tokens"]),
            failed=columns["failed"].astype(np.bool_),
            ttft_ms=_floats(columns["ttft_ms"]),
            cost_usd=_floats(columns["cost_usd"]),
        )

    def incidents(self, endpoints: Sequence[str], since: float, until: float) -> list[Incident]:
        """Return when `endpoints` were degraded, by the same rule that labels forecasts."""
        period = {"since": utc_timestamp(since), "until": utc_timestamp(until)}
        return [Incident(**row) for row in self._rows("replay_incidents", period | {"endpoints": list(endpoints)})]

    def pauses(self, endpoints: Sequence[str], since: float, until: float) -> list[tuple[int, float, float]]:
        """Return (endpoint, when, seconds) of every pause that a rate limit asked for and that changed a state."""
        rows = self._connection.execute(
            "SELECT list_position($endpoints, endpoint) - 1, unix_s(time), value FROM transitions "
            "WHERE model = $model AND metric = 'retry_after_s' AND list_contains($endpoints, endpoint) "
            "AND time >= $since AND time < $until ORDER BY time",
            self._period(since, until) | {"endpoints": list(endpoints)},
        ).fetchall()
        return [(int(endpoint), float(when), float(pause_s)) for endpoint, when, pause_s in rows]

    def hours(self, since: float, until: float) -> list[Hour]:
        """Return the hours in which requests came."""
        words = {"departed_states": list(DEPARTED_STATES)}
        return [
            Hour(row["hour"], row["requests"], row["eventful"])
            for row in self._rows("replay_hours", self._period(since, until) | words)
        ]

    def _period(self, since: float, until: float) -> dict[str, Any]:
        return {"since": utc_timestamp(since), "until": utc_timestamp(until), "model": self._model}

    def _rows(self, name: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        cursor = self._connection.execute(sql_text_of(name), dict(parameters))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _columns(self, name: str, parameters: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        found: dict[str, npt.NDArray[Any]] = self._connection.execute(sql_text_of(name), dict(parameters)).fetchnumpy()
        return found


def replayable_models(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> list[str]:
    """Return the models that were asked for in the period, busiest first."""
    rows = connection.execute(
        "SELECT model FROM requests WHERE time >= $since AND time < $until AND method <> 'route' "
        "GROUP BY model ORDER BY count(*) DESC, model",
        {"since": utc_timestamp(since), "until": utc_timestamp(until)},
    ).fetchall()
    return [str(model) for (model,) in rows]


def first_and_last(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> tuple[float, float] | None:
    """Return when the first request of the period arrived and the last one ended; None without any."""
    row = connection.execute(
        "SELECT unix_s(min(time - to_microseconds(CAST(latency_ms * 1000 AS BIGINT)))), unix_s(max(time)) "
        "FROM requests WHERE time >= $since AND time < $until AND method <> 'route'",
        {"since": utc_timestamp(since), "until": utc_timestamp(until)},
    ).fetchone()
    return None if row is None or row[0] is None else (float(row[0]), float(row[1]))


def _floats(values: npt.NDArray[Any]) -> _Floats:
    filled: _Floats = np.ma.filled(np.ma.asarray(values, dtype=np.float64), np.nan)
    return filled
