"""Long periods in pieces, so that a question about all of history takes the memory of some hours of it.

Rule of this file: a piece ends where an hour ends, and its size is counted in rows, not in time: a busy day has many.
"""

from collections.abc import Iterator

import duckdb

from analytics.queries import utc_timestamp

# Health samples and attempts that are sorted and joined at a time; 1 GB holds about four times as many.
MOST_ROWS = 250_000

_HOURS = """
SELECT epoch(hour), count(*)
FROM (
    SELECT time_bucket(INTERVAL 1 HOUR, time) AS hour FROM health WHERE time >= $since AND time < $until
    UNION ALL
    SELECT time_bucket(INTERVAL 1 HOUR, time) FROM attempts WHERE time >= $since AND time < $until
)
GROUP BY hour
ORDER BY hour
"""


def pieces(
    connection: duckdb.DuckDBPyConnection, since: float, until: float, most_rows: int = MOST_ROWS
) -> Iterator[tuple[float, float]]:
    """Cut [since, until) (unix seconds) into periods that follow one another, each of at most about `most_rows` rows;
    an hour is never cut.
    """
    period = {"since": utc_timestamp(since), "until": utc_timestamp(until)}
    begin, held = since, 0
    for hour, rows in connection.execute(_HOURS, period).fetchall():
        if held and held + rows > most_rows and hour > begin:
            yield begin, hour
            begin, held = hour, 0
        held += rows
    if begin < until:
        yield begin, until
