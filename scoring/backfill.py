"""Features of the past, computed anew from recorded attempts: for history that was logged with another feature set.

The rule of this file: the same windows, the same features, the same order of events as in the scoring process, so that
what is filled in is what would have been logged, bit for bit. Both see times and durations in whole microseconds, which
is what history keeps.
"""

from collections.abc import Iterator
from dataclasses import replace

import duckdb
import numpy as np

from analytics.queries import sql_text_of, utc_timestamp
from analytics.training import TrainingRows
from routing.outcomes import Outcome
from routing.window import Window
from scoring.features import FEATURE_SET, FEATURES, Member, matrix
from scoring.protocol import Observation

# What a window remembers: an hour, and the minute it is rounded to.
_MEMORY_S = 3660.0
_BATCH_ROWS = 10_000


def in_microseconds(seconds: float) -> float:
    """Return seconds as history gives them back."""
    return round(seconds * 1e6) / 1e6


def observe(window: Window, seen: Observation) -> None:
    """Tell a window one observation, in whole microseconds. Raises ValueError for a finished one without an outcome."""
    now = in_microseconds(seen.time)
    if seen.kind == "started":
        window.started(seen.attempt_id, now, streamed=seen.streamed)
    elif seen.kind == "first_byte":
        window.first_byte(seen.attempt_id, now)
    elif seen.outcome is None:
        raise ValueError(f"finished attempt {seen.attempt_id!r}: expected an outcome")
    else:
        window.finished(
            seen.attempt_id,
            seen.outcome,
            now,
            ttft_s=None if seen.ttft_s is None else in_microseconds(seen.ttft_s),
            reply_s=None if seen.reply_s is None else in_microseconds(seen.reply_s),
            output_tokens=seen.output_tokens,
            generation_s=in_microseconds(seen.generation_s),
        )


def backfilled(connection: duckdb.DuckDBPyConnection, rows: TrainingRows) -> TrainingRows:
    """Return the same samples with the features of today's set, from the attempts of the hour before and since.

    Attempts that have not ended are not in history, so the newest minute may lack those in flight.
    """
    if not len(rows.time):
        return replace(rows, feature_set=FEATURE_SET, x=np.empty((0, len(FEATURES))))
    since, until = float(rows.time[0]) - _MEMORY_S, float(rows.time[-1])
    members = _members(connection, since, until)
    index = {name: i for i, name in enumerate(members)}
    windows = [Window() for _ in members]
    x = np.full((len(rows.time), len(FEATURES)), np.nan)
    events = _observations(connection, since, until, index)
    pending = next(events, None)
    at = 0
    while at < len(rows.time):
        now = float(rows.time[at])
        while pending is not None and pending.time < now:
            observe(windows[pending.endpoint], pending)
            pending = next(events, None)
        features = matrix(list(members.values()), windows, now)
        while at < len(rows.time) and rows.time[at] == now:
            if (i := index.get(str(rows.endpoint[at]))) is not None:
                x[at] = features[i]
            at += 1
    known = np.isfinite(x).all(axis=1)
    return replace(rows, feature_set=FEATURE_SET, x=np.nan_to_num(x), mask=rows.mask & known)


def _members(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> dict[str, Member]:
    rows = connection.execute(
        "SELECT DISTINCT endpoint, provider, region FROM health "
        "WHERE time >= $since AND time <= $until ORDER BY endpoint",
        {"since": utc_timestamp(since), "until": utc_timestamp(until)},
    ).fetchall()
    return {endpoint: Member(provider, region) for endpoint, provider, region in rows}


def _observations(
    connection: duckdb.DuckDBPyConnection, since: float, until: float, index: dict[str, int]
) -> Iterator[Observation]:
    """Yield what the scoring process was told, in the order of time."""
    cursor = connection.cursor()
    cursor.execute(sql_text_of("observations"), {"since": utc_timestamp(since), "until": utc_timestamp(until)})
    while batch := cursor.fetchmany(_BATCH_ROWS):
        for time, kind, endpoint, attempt, outcome, ttft_s, reply_s, tokens, generation_s, streamed in batch:
            if endpoint in index:
                ended = Outcome(outcome) if kind == "finished" else None
                yield Observation(
                    kind, index[endpoint], str(attempt), time, ended, ttft_s, reply_s, tokens, generation_s, streamed
                )
    cursor.close()
