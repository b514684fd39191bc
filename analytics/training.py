"""History as training data: the features that were really used, with what followed.

Rule of this file: features are never recomputed here, so training sees exactly what serving saw. Labels come from the
macros `degraded_moments` and `labelled_health` in `sql/macros.sql`, the same that judge forecasts.
"""

from dataclasses import dataclass

import duckdb
import numpy as np
import numpy.typing as npt

from analytics.errors import FeatureShapeError, HistoryError
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
) -> TrainingRows:
    """Labelled health samples of [since, until) (unix seconds), of `feature_set` or else of the newest one in the
    period.

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
        "SELECT DISTINCT len(features) AS k FROM health "
        "WHERE time >= $since AND time < $until AND feature_set = $feature_set ORDER BY k",
        {**period, "feature_set": feature_set},
    ).fetchall()
    if len(lengths) > 1:
        found = ", ".join(str(k) for (k,) in lengths)
        raise FeatureShapeError(f"feature set {feature_set!r}: expected samples of one length, found lengths {found}")
    width = int(lengths[0][0]) if lengths else 0
    # One column per feature: they arrive as float64 arrays, while a list column would become n Python lists.
    features = "".join(f", features[{index}] AS f{index}" for index in range(1, width + 1))
    columns = connection.execute(
        sql_text_of("training_rows").replace("/* features */", features),
        {**period, "horizon_s": horizon_s, "feature_set": feature_set},
    ).fetchnumpy()
    n = len(columns["time"])
    x = np.empty((n, width), dtype=np.float64)
    for index in range(width):
        x[:, index] = np.ma.filled(columns[f"f{index + 1}"], np.nan)
    return TrainingRows(
        feature_set=feature_set,
        x=x,
        y=np.asarray(columns["y"], dtype=np.int8),
        mask=np.asarray(columns["known"], dtype=np.bool_),
        time=np.asarray(columns["time"], dtype=np.float64),
        endpoint=np.asarray(columns["endpoint"], dtype=np.object_),
        provider=np.asarray(columns["provider"], dtype=np.object_),
        replica=np.asarray(columns["replica"], dtype=np.object_),
    )


def watched_rows(
    connection: duckdb.DuckDBPyConnection, horizon_s: float, since: float, until: float, shadow: str
) -> WatchedRows:
    """Labelled moments of [since, until) (unix seconds) at which both the champion and `shadow` made a forecast."""
    columns = connection.execute(
        sql_text_of("watched_rows"),
        {"since": utc_timestamp(since), "until": utc_timestamp(until), "horizon_s": horizon_s, "shadow": shadow},
    ).fetchnumpy()
    return WatchedRows(
        risk=np.asarray(columns["risk"], dtype=np.float64),
        shadow_risk=np.asarray(columns["shadow_risk"], dtype=np.float64),
        y=np.asarray(columns["y"], dtype=np.int8),
        mask=np.asarray(columns["known"], dtype=np.bool_),
        time=np.asarray(columns["time"], dtype=np.float64),
        endpoint=np.asarray(columns["endpoint"], dtype=np.object_),
        provider=np.asarray(columns["provider"], dtype=np.object_),
    )


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


def probe_contrasts(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> list[ProbeContrast]:
    """Compare probes with live attempts of the same seconds, by endpoint, over [since, until) (unix seconds)."""
    rows = connection.execute(
        sql_text_of("probe_contrasts"), {"since": utc_timestamp(since), "until": utc_timestamp(until)}
    ).fetchall()
    return [ProbeContrast(*row) for row in rows]
