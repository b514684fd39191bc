-- Incidents as the attempts show them: degraded moments of one endpoint without a gap of more than a minute. They begin when the
-- first attempt was sent that failed in the 30 s before, and end with the last failure, if failures are what showed them.
WITH moment AS (
    SELECT endpoint, time, coalesce(time - lag(time) OVER of_endpoint > INTERVAL 60 SECOND, true) AS fresh
    FROM degraded_moments($since, $until)
    WHERE list_contains($endpoints, endpoint)
    WINDOW of_endpoint AS (PARTITION BY endpoint ORDER BY time)
),
numbered AS (
    SELECT endpoint, time, sum(CAST(fresh AS INTEGER)) OVER (PARTITION BY endpoint ORDER BY time) AS number FROM moment
),
spell AS (
    SELECT endpoint, number, min(time) AS shown, max(time) AS over FROM numbered GROUP BY endpoint, number
),
failure AS (
    SELECT spell.endpoint, spell.number, min(attempts.started) AS first, max(attempts.time) AS last,
        mode(attempts.outcome ORDER BY attempts.outcome) AS outcome, count(*) AS n
    FROM spell
    JOIN attempts ON attempts.endpoint = spell.endpoint
        AND attempts.time BETWEEN spell.shown - INTERVAL 30 SECOND AND spell.over
    WHERE is_failure(attempts.outcome)
    GROUP BY spell.endpoint, spell.number
)
SELECT
    list_position($endpoints, spell.endpoint) - 1 AS endpoint,
    unix_s(CASE WHEN failure.n >= 3 THEN failure.first ELSE spell.shown END) AS "begin",
    unix_s(CASE WHEN failure.n >= 3 THEN greatest(failure.last, spell.shown) ELSE spell.over END) AS "end",
    CASE WHEN failure.n >= 3 THEN failure.outcome ELSE '' END AS outcome
FROM spell LEFT JOIN failure USING (endpoint, number)
ORDER BY "begin", endpoint
