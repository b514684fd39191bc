-- Words every query shares. Analysts can use them in their own SQL too.

CREATE OR REPLACE MACRO is_failure(outcome) AS outcome IN ({failure_outcomes});

-- Whether an attempt says something about its endpoint at all.
CREATE OR REPLACE MACRO is_evidence(outcome) AS outcome = 'ok' OR is_failure(outcome);

CREATE OR REPLACE MACRO unix_s(t) AS epoch_us(t) / 1e6;

-- Moments at which an endpoint is degraded, judged at every attempt when its outcome becomes known:
-- in the last 30 s at least 3 failures that are at least 10 % of the attempts, or at least 5 successes whose median TTFT is at
-- least 2.5 times the endpoint's own baseline (the 30 min before, newest 5 min left out).
CREATE OR REPLACE MACRO degraded_moments(since, until) AS TABLE
WITH windowed AS (
    SELECT
        endpoint,
        time,
        count(*) OVER recent AS n,
        count(*) FILTER (is_failure(outcome)) OVER recent AS failures,
        count(ttft_ms) FILTER (outcome = 'ok') OVER recent AS timed,
        median(ttft_ms) FILTER (outcome = 'ok') OVER recent AS ttft,
        median(ttft_ms) FILTER (outcome = 'ok') OVER before AS baseline
    FROM attempts
    WHERE is_evidence(outcome)
        AND time >= CAST(since AS TIMESTAMP) - INTERVAL 31 MINUTE
        AND time < CAST(until AS TIMESTAMP)
    WINDOW
        recent AS (PARTITION BY endpoint ORDER BY time RANGE BETWEEN INTERVAL 30 SECOND PRECEDING AND CURRENT ROW),
        before AS (PARTITION BY endpoint ORDER BY time
                   RANGE BETWEEN INTERVAL 30 MINUTE PRECEDING AND INTERVAL 5 MINUTE PRECEDING)
)
SELECT DISTINCT endpoint, time
FROM windowed
WHERE time >= CAST(since AS TIMESTAMP)
    AND ((failures >= 3 AND failures >= 0.1 * n) OR (timed >= 5 AND ttft >= 2.5 * baseline));

-- Health samples in [since, until) with what followed each within the horizon: `degraded` (at any moment in (time, time + horizon])
-- and `known` (at least 3 attempts became known in there, and all of it lies before `until`).
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
    sample.due <= CAST(until AS TIMESTAMP) AND coalesce(later.n, 0) - coalesce(earlier.n, 0) >= 3 AS known
FROM sample
ASOF LEFT JOIN moment ON sample.endpoint = moment.endpoint AND sample.time < moment.time
ASOF LEFT JOIN counted AS earlier ON sample.endpoint = earlier.endpoint AND sample.time >= earlier.time
ASOF LEFT JOIN counted AS later ON sample.endpoint = later.endpoint AND sample.due >= later.time;
