"""Features of the past, computed anew from recorded attempts: for history that was logged with another feature set.

The rule of this file: the same windows, the same features, the same order of events as in the scoring process, so that
what is filled in is what would have been logged, bit for bit. Both see times and durations in whole microseconds, which
is what history keeps.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import numpy.typing as npt

from analytics.queries import sql_text_of, utc_timestamp
from analytics.records import OUTRUN, SCORING_SUFFIX
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

    Attempts that have not ended are not in history, so the newest minute may lack those in flight; and what a process
    saw before it was started anew is remembered here, but was not by that process.
    """
    if not len(rows.time):
        return replace(rows, feature_set=FEATURE_SET, x=np.empty((0, len(FEATURES))))
    since, until = float(rows.time[0]) - _MEMORY_S, float(rows.time[-1])
    watchers = _watchers(connection, since, until)
    x = np.full((len(rows.time), len(FEATURES)), np.nan)
    events = _observations(connection, since, until, watchers)
    pending = next(events, None)
    for begin, end in _ticks(rows.time):
        now = float(rows.time[begin])
        while pending is not None and pending[0] < now:
            _, watcher, seen = pending
            observe(watcher.windows[seen.endpoint], seen)
            pending = next(events, None)
        for replica in dict.fromkeys(rows.replica[begin:end].tolist()):
            watcher = watchers[replica]
            features = matrix(list(watcher.members.values()), watcher.windows, now)
            own = begin + np.flatnonzero(rows.replica[begin:end] == replica)
            x[own] = features[[watcher.index[endpoint] for endpoint in rows.endpoint[own].tolist()]]
    known = np.isfinite(x).all(axis=1)
    return replace(rows, feature_set=FEATURE_SET, x=np.nan_to_num(x), mask=rows.mask & known)


def _ticks(time: npt.NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Yield from which row to which each moment lasts."""
    begins = np.flatnonzero(np.diff(time, prepend=-np.inf)).tolist()
    return zip(begins, [*begins[1:], len(time)], strict=True)


@dataclass(frozen=True, slots=True)
class _Watcher:
    """A scoring process: endpoints with their windows, which hold what its own replica did."""

    members: dict[str, Member]
    windows: list[Window]
    index: dict[str, int]


def _watchers(connection: duckdb.DuckDBPyConnection, since: float, until: float) -> dict[str, _Watcher]:
    rows = connection.execute(
        "SELECT DISTINCT replica, endpoint, provider, region FROM health "
        "WHERE time >= $since AND time <= $until ORDER BY replica, endpoint",
        {"since": utc_timestamp(since), "until": utc_timestamp(until)},
    ).fetchall()
    found: dict[str, _Watcher] = {}
    for replica, endpoint, provider, region in rows:
        watcher = found.setdefault(replica, _Watcher({}, [], {}))
        watcher.index[endpoint] = len(watcher.windows)
        watcher.members[endpoint] = Member(provider, region)
        watcher.windows.append(Window())
    return found


def _observations(
    connection: duckdb.DuckDBPyConnection, since: float, until: float, watchers: Mapping[str, _Watcher]
) -> Iterator[tuple[float, _Watcher, Observation]]:
    """Yield what each scoring process was told, and when, in this order."""
    watcher_of = {replica.removesuffix(SCORING_SUFFIX): watcher for replica, watcher in watchers.items()}
    cursor = connection.cursor()
    cursor.execute(
        sql_text_of("observations"), {"since": utc_timestamp(since), "until": utc_timestamp(until), "outrun": OUTRUN}
    )
    while batch := cursor.fetchmany(_BATCH_ROWS):
        for (
            told,
            time,
            kind,
            replica,
            endpoint,
            attempt,
            outcome,
            ttft_s,
            reply_s,
            tokens,
            generation_s,
            streamed,
        ) in batch:
            watcher = watcher_of.get(replica)
            if watcher is not None and endpoint in watcher.index:
                place, ended = watcher.index[endpoint], Outcome(outcome) if kind == "finished" else None
                yield (
                    told,
                    watcher,
                    Observation(
                        kind, place, str(attempt), time, ended, ttft_s, reply_s, tokens, generation_s, streamed
                    ),
                )
    cursor.close()
