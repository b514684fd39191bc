"""History as training data: the features that were really used, with what followed.

Rule of this file: features are never recomputed here, so training sees exactly what serving saw. Labels come from the
macros `degraded_moments` and `labelled_health` in `sql/macros.sql`, the same that judge forecasts.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from analytics.errors import FeatureShapeError, HistoryError
from analytics.pieces import MOST_ROWS, pieces
from analytics.queries import sql_text_of, utc_timestamp


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """n samples of one feature set, ordered by time, endpoint and replica.

    `x`: n × k float64 features (a logged -0.0 comes as 0.0, by DuckDB's ASOF join);
    `y`: n int8 labels, 1 if the endpoint was degraded at any moment in (time, time +
    horizon]; `mask`: n bools, False where the label is not known for want of evidence; `time`: n float64 unix
    seconds; `endpoint` and its `provider`, and the `replica` that computed it: n str.
    """

    feature_set: str
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.int8]
    mask: npt.NDArray[np.bool_]
    time: npt.NDArray[np.float64]
    endpoint: npt.NDArray[np.object_]
    provider: npt.NDArray[np.object_]
    replica: npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class WatchedRows:
    """n forecasts that a serving and a watched forecaster made at the same moments, ordered by time and endpoint.

    `risk` and `shadow_risk`: n float64; the rest as in `TrainingRows`.
    """

    risk: npt.NDArray[np.float64]
    shadow_risk: npt.NDArray[np.float64]
    y: npt.NDArray[np.int8]
    mask: npt.NDArray[np.bool_]
    time: npt.NDArray[np.float64]
    endpoint: npt.NDArray[np.object_]
    provider: npt.NDArray[np.object_]


def training_rows(
    connection: duckdb.DuckDBPyConnection,
    horizon_s: float,
    since: float,
    until: float,
    feature_set: str | None = None,
    *,
    most_rows: int = MOST_ROWS,
) -> TrainingRows:
    """Labelled health samples of [since, until) (unix seconds), of `feature_set` or else of the newest one in the
    period. `most_rows` are read at a time.

    With no sample, n and k are 0 and the feature set is the one asked for, or empty. Raises `FeatureShapeError` when
    samples of the feature set differ in length, and `HistoryError` when the horizon is not above 0.
    """
    if not horizon_s > 0:
        raise HistoryError(f"horizon_s = {horizon_s!r}: expected a duration above 0 seconds")
    period = {"since": utc_timestamp(since), "until": utc_timestamp(until)}
    if feature_set is None:
        newest = connection.execute(
            "SELECT arg_max(feature_set, time) FROM health WHERE time >= $since AND time < $until", period
        ).fetchone()
        feature_set = (newest[0] if newest else None) or ""
    lengths = connection.execute(
        "SELECT len(features) AS k, count(*) FROM health "
        "WHERE time >= $since AND time < $until AND feature_set = $feature_set GROUP BY k ORDER BY k",
        {**period, "feature_set": feature_set},
    ).fetchall()
    if len(lengths) > 1:
        found = ", ".join(str(k) for k, _ in lengths)
        raise FeatureShapeError(f"feature set {feature_set!r}: expected samples of one length, found lengths {found}")
    width, n = lengths[0] if lengths else (0, 0)
    # One column per feature: they arrive as float64 arrays, while a list column would become n Python lists.
    features = "".join(f", features[{index}] AS f{index}" for index in range(1, width + 1))
    text = sql_text_of("training_rows").replace("/* features */", features)
    x, labelled = np.empty((n, width), dtype=np.float64), _Labelled(("endpoint", "provider", "replica"))
    for columns in _labelled(connection, text, horizon_s, (since, until), {"feature_set": feature_set}, most_rows):
        first = labelled.n
        labelled.add(columns)
        for index in range(width):
            x[first : labelled.n, index] = np.ma.filled(columns[f"f{index + 1}"], np.nan)
    return TrainingRows(
        feature_set=feature_set,
        x=x[: labelled.n],
        replica=labelled.joined("replica", np.object_),
        **labelled.common(),
    )


def watched_rows(
    connection: duckdb.DuckDBPyConnection,
    horizon_s: float,
    since: float,
    until: float,
    shadow: str,
    *,
    most_rows: int = MOST_ROWS,
) -> WatchedRows:
    """Labelled moments of [since, until) (unix seconds) at which both the champion and `shadow` made a forecast."""
    labelled = _Labelled(("endpoint", "provider"))
    text = sql_text_of("watched_rows")
    for columns in _labelled(connection, text, horizon_s, (since, until), {"shadow": shadow}, most_rows):
        labelled.add(columns)
    return WatchedRows(
        risk=labelled.joined("risk", np.float64),
        shadow_risk=labelled.joined("shadow_risk", np.float64),
        **labelled.common(),
    )


_Columns = Mapping[str, npt.NDArray[Any]]


def _labelled(
    connection: duckdb.DuckDBPyConnection,
    text: str,
    horizon_s: float,
    period: tuple[float, float],
    parameters: Mapping[str, str],
    most_rows: int,
) -> Iterator[_Columns]:
    """Ask for labelled samples piece by piece; each is told what came within the horizon after it, until the end."""
    for begin, end in pieces(connection, *period, most_rows):
        seen = {"since": begin, "until": min(period[1], end + horizon_s), "end": end}
        moments = {name: utc_timestamp(seconds) for name, seconds in seen.items()}
        yield connection.execute(text, {**moments, "horizon_s": horizon_s, **parameters}).fetchnumpy()


class _Labelled:
    """Columns that come in pieces. `names` are those of text: millions of rows share a few values, so they share the
    strings too.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.n = 0
        self._names = names
        self._known: dict[str, str] = {}
        self._parts: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)

    def add(self, columns: _Columns) -> None:
        """Append one piece; its features are the caller's."""
        self.n += len(columns["time"])
        for name in ("time", "y", "known", "risk", "shadow_risk", *self._names):
            if name in columns:
                self._parts[name].append(self._shared(columns[name]) if name in self._names else columns[name])

    def _shared(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.array([self._known.setdefault(value, value) for value in values.tolist()], dtype=np.object_)

    def joined(self, name: str, kind: Any) -> npt.NDArray[Any]:
        """Return all of one column."""
        return np.concatenate([np.empty(0, dtype=kind), *self._parts[name]]).astype(kind, copy=False)

    def common(self) -> dict[str, npt.NDArray[Any]]:
        """Return what all labelled rows have, by the names of their fields."""
        return {
            "y": self.joined("y", np.int8),
            "mask": self.joined("known", np.bool_),
            "time": self.joined("time", np.float64),
            "endpoint": self.joined("endpoint", np.object_),
            "provider": self.joined("provider", np.object_),
        }


@dataclass(frozen=True, slots=True)
class ProbeContrast:
    """How often probes of one endpoint failed over a period, and the live attempts within three seconds of each; a live
    attempt near two probes counts twice.
    """

    endpoint: str
    probes: int
    probes_failed: int
    live: int
    live_failed: int


def probe_contrasts(
    connection: duckdb.DuckDBPyConnection, since: float, until: float, *, most_rows: int = MOST_ROWS
) -> list[ProbeContrast]:
    """Compare probes with live attempts of the same seconds, by endpoint, over [since, until) (unix seconds)."""
    totals: dict[str, npt.NDArray[np.int64]] = {}
    for begin, end in pieces(connection, since, until, most_rows):
        rows = connection.execute(
            sql_text_of("probe_contrasts"), {"since": utc_timestamp(begin), "until": utc_timestamp(end)}
        ).fetchall()
        for endpoint, *counts in rows:
            totals[endpoint] = totals.get(endpoint, np.zeros(4, dtype=np.int64)) + counts
    return [ProbeContrast(endpoint, *totals[endpoint].tolist()) for endpoint in sorted(totals)]
