-- Words every query shares. Analysts can use them in their own SQL too.

CREATE OR REPLACE MACRO is_failure(outcome) AS outcome IN ({failure_outcomes});

-- Whether an attempt says something about its endpoint at all.
CREATE OR REPLACE MACRO is_evidence(outcome) AS outcome = 'ok' OR is_failure(outcome);

CREATE OR REPLACE MACRO unix_s(t) AS epoch_us(t) / 1e6;

-- Moments at which an endpoint is degraded, judged at every attempt when its outcome becomes known:
-- of late failures that are at least 10 % of the attempts and beyond chance against the endpoint's usual share of them (3 where it
-- never fails), or, judged at successes, at least 7 whose median TTFT is at least 2.5 times the endpoint's usual median and beyond its
-- usual 95 % quantile. Of late is the last 30 s, or the last 7 attempts (successes) if these are more and within 90 s. Usual is the
-- 30 min before, newest 5 min left out, in whole minutes: a baseline for each attempt costs many times as much.
-- `scoring/degradation.py` gives the reasons.
CREATE OR REPLACE MACRO degraded_moments(since, until) AS TABLE
WITH evidence AS (
    SELECT endpoint, time, ttft_ms, outcome, time_bucket(INTERVAL 1 MINUTE, time) AS minute
    FROM attempts
    WHERE is_evidence(outcome)
        AND time >= CAST(since AS TIMESTAMP) - INTERVAL 31 MINUTE
        AND time < CAST(until AS TIMESTAMP)
),
counted AS (
    SELECT
        endpoint,
        time,
        minute,
        CASE WHEN count(*) OVER recent >= 7 THEN count(*) OVER recent ELSE least(7, count(*) OVER late) END AS n,
        CASE
            WHEN count(*) OVER recent >= 7 THEN count(*) FILTER (is_failure(outcome)) OVER recent
            WHEN count(*) OVER late >= 7 THEN count(*) FILTER (is_failure(outcome)) OVER last
            ELSE count(*) FILTER (is_failure(outcome)) OVER late
        END AS failures
    FROM evidence
    WINDOW
        recent AS (PARTITION BY endpoint ORDER BY time RANGE BETWEEN INTERVAL 30 SECOND PRECEDING AND CURRENT ROW),
        late AS (PARTITION BY endpoint ORDER BY time RANGE BETWEEN INTERVAL 90 SECOND PRECEDING AND CURRENT ROW),
        last AS (PARTITION BY endpoint ORDER BY time ROWS 6 PRECEDING),
        ordered AS (PARTITION BY endpoint ORDER BY time)
    -- Of attempts that became known at once, the last one is judged.
    QUALIFY lead(time) OVER ordered IS DISTINCT FROM time
),
timed AS (
    SELECT
        endpoint,
        time,
        minute,
        CASE
            WHEN count(*) OVER recent >= 7 THEN median(ttft_ms) OVER recent
            WHEN lag(time, 6) OVER ordered >= time - INTERVAL 90 SECOND THEN median(ttft_ms) OVER last
        END AS ttft
    FROM evidence
    WHERE outcome = 'ok' AND ttft_ms IS NOT NULL
    WINDOW
        ordered AS (PARTITION BY endpoint ORDER BY time),
        recent AS (PARTITION BY endpoint ORDER BY time RANGE BETWEEN INTERVAL 30 SECOND PRECEDING AND CURRENT ROW),
        last AS (PARTITION BY endpoint ORDER BY time ROWS 6 PRECEDING)
    QUALIFY lead(time) OVER ordered IS DISTINCT FROM time
),
-- A busy minute is thinned evenly to 60 to 119 successes: a median over 25 min needs no more, and memory stays bounded.
thinned AS (
    SELECT endpoint, minute, ttft_ms
    FROM evidence
    WHERE outcome = 'ok' AND ttft_ms IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY endpoint, minute ORDER BY time)
        % greatest(1, count(*) OVER (PARTITION BY endpoint, minute) // 60) = 0
),
-- Each success counts towards the baselines of the minutes 6 to 30 after its own, and so does each failure.
usual_latency AS (
    SELECT endpoint, minute, median(ttft_ms) AS median, quantile_cont(ttft_ms, 0.95) AS slowest
    FROM (
        SELECT endpoint, ttft_ms, minute + to_minutes(unnest(range(6, 31))) AS minute
        FROM thinned
    )
    GROUP BY endpoint, minute
),
usual_failures AS (
    SELECT endpoint, minute, least(0.1, sum(failures) / (sum(n) + 30)) AS share
    FROM (
        SELECT endpoint, n, failures, minute + to_minutes(unnest(range(6, 31))) AS minute
        FROM (
            SELECT endpoint, minute, count(*) AS n, count(*) FILTER (is_failure(outcome)) AS failures
            FROM evidence
            GROUP BY endpoint, minute
        )
    )
    GROUP BY endpoint, minute
)
SELECT endpoint, time
FROM counted
LEFT JOIN usual_failures USING (endpoint, minute)
WHERE time >= CAST(since AS TIMESTAMP)
    AND failures >= 0.1 * n
    AND sqrt(failures) >= sqrt(coalesce(share, 0) * n) + 1.5
UNION
SELECT endpoint, time
FROM timed
JOIN usual_latency USING (endpoint, minute)
WHERE time >= CAST(since AS TIMESTAMP) AND ttft >= greatest(2.5 * median, slowest);

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
