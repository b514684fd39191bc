-- Words every query shares. Analysts can use them in their own SQL too.

CREATE OR REPLACE MACRO is_failure(outcome) AS outcome IN ({failure_outcomes});

-- Whether an attempt says something about its endpoint at all.
CREATE OR REPLACE MACRO is_evidence(outcome) AS outcome = 'ok' OR is_failure(outcome);

CREATE OR REPLACE MACRO unix_s(t) AS epoch_us(t) / 1e6;

-- Moments at which an endpoint is degraded, judged at every attempt when its outcome becomes known:
-- in the last 30 s at least 3 failures that are at least 10 % of the attempts, or at least 5 successes whose median TTFT is at
-- least 2.5 times the endpoint's own baseline (the 30 min before, newest 5 min left out, in whole minutes: a baseline for each
-- attempt costs many times as much).
CREATE OR REPLACE MACRO degraded_moments(since, until) AS TABLE
WITH evidence AS (
    SELECT endpoint, time, ttft_ms, outcome, time_bucket(INTERVAL 1 MINUTE, time) AS minute
    FROM attempts
    WHERE is_evidence(outcome)
        AND time >= CAST(since AS TIMESTAMP) - INTERVAL 31 MINUTE
        AND time < CAST(until AS TIMESTAMP)
),
windowed AS (
    SELECT
        endpoint,
        time,
        minute,
        count(*) OVER recent AS n,
        count(*) FILTER (is_failure(outcome)) OVER recent AS failures,
        count(ttft_ms) FILTER (outcome = 'ok') OVER recent AS timed,
        median(ttft_ms) FILTER (outcome = 'ok') OVER recent AS ttft
    FROM evidence
    WINDOW recent AS (PARTITION BY endpoint ORDER BY time RANGE BETWEEN INTERVAL 30 SECOND PRECEDING AND CURRENT ROW)
),
-- A busy minute is thinned evenly to 60 to 119 successes: a median over 25 min needs no more, and memory stays bounded.
thinned AS (
    SELECT endpoint, minute, ttft_ms
    FROM evidence
    WHERE outcome = 'ok' AND ttft_ms IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY endpoint, minute ORDER BY time)
        % greatest(1, count(*) OVER (PARTITION BY endpoint, minute) // 60) = 0
),
-- Each success counts towards the baselines of the minutes 6 to 30 after its own.
baseline AS (
    SELECT endpoint, minute, median(ttft_ms) AS ttft
    FROM (
        SELECT endpoint, ttft_ms, minute + to_minutes(unnest(range(6, 31))) AS minute
        FROM thinned
    )
    GROUP BY endpoint, minute
)
SELECT DISTINCT windowed.endpoint, windowed.time
FROM windowed
LEFT JOIN baseline ON baseline.endpoint = windowed.endpoint AND baseline.minute = windowed.minute
WHERE windowed.time >= CAST(since AS TIMESTAMP)
    AND (
        (windowed.failures >= 3 AND windowed.failures >= 0.1 * windowed.n)
        OR (windowed.timed >= 5 AND windowed.ttft >= 2.5 * baseline.ttft)
    );

-- Health samples in [since, until) with what followed each within the horizon: `degraded` (at any moment in (time, time + horizon])
-- and `known` (all of it lies before `until`, and it was degraded or at least 3 attempts per 30 s became known in there: fewer could
-- hardly show trouble, and an endpoint whose traffic was moved away must not be called healthy for want of witnesses).
CREATE OR REPLACE MACRO labelled_health(since, until, horizon_s) AS TABLE
WITH sample AS (
    SELECT *, time + to_microseconds(CAST(horizon_s * 1e6 AS BIGINT)) AS due
    FROM health
    WHERE time >= CAST(since AS TIMESTAMP) AND time < CAST(until AS TIMESTAMP)
),
counted AS (
    SELECT endpoint, time, max(n) AS n
    FROM (
        SELECT endpoint, time, row_number() OVER (PARTITION BY endpoint ORDER BY time) AS n
        FROM attempts
        WHERE is_evidence(outcome) AND time >= CAST(since AS TIMESTAMP) AND time < CAST(until AS TIMESTAMP)
    )
    GROUP BY endpoint, time
),
moment AS (
    SELECT * FROM degraded_moments(since, until)
)
SELECT
    sample.*,
    coalesce(moment.time <= sample.due, false) AS degraded,
    sample.due <= CAST(until AS TIMESTAMP)
        AND (
            coalesce(moment.time <= sample.due, false)
            OR coalesce(later.n, 0) - coalesce(earlier.n, 0) >= 3 * horizon_s / 30
        ) AS known
FROM sample
ASOF LEFT JOIN moment ON sample.endpoint = moment.endpoint AND sample.time < moment.time
ASOF LEFT JOIN counted AS earlier ON sample.endpoint = earlier.endpoint AND sample.time >= earlier.time
ASOF LEFT JOIN counted AS later ON sample.endpoint = later.endpoint AND sample.due >= later.time;
