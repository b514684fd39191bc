-- The hours of a model's traffic, counted from `since`: how many requests came, and whether anything was wrong or changed.
WITH request AS (
    SELECT CAST(floor((unix_s(time) - unix_s(CAST($since AS TIMESTAMP))) / 3600) AS BIGINT) AS hour, count(*) AS requests
    FROM requests WHERE model = $model AND method NOT IN ('route', 'replay') AND time >= $since AND time < $until
    GROUP BY hour
),
failing AS (
    SELECT DISTINCT hour
    FROM (
        SELECT CAST(floor((unix_s(time) - unix_s(CAST($since AS TIMESTAMP))) / 3600) AS BIGINT) AS hour
        FROM attempts
        WHERE model = $model AND time >= $since AND time < $until AND is_evidence(outcome)
        GROUP BY hour, endpoint, time_bucket(INTERVAL 1 MINUTE, time)
        HAVING count(*) FILTER (is_failure(outcome)) >= 3 AND count(*) FILTER (is_failure(outcome)) >= 0.1 * count(*)
    )
    UNION
    SELECT CAST(floor((unix_s(time) - unix_s(CAST($since AS TIMESTAMP))) / 3600) AS BIGINT)
    FROM transitions
    WHERE model = $model AND time >= $since AND time < $until AND list_contains($departed_states, to_state)
)
SELECT hour, requests, failing.hour IS NOT NULL AS eventful
FROM request LEFT JOIN failing USING (hour)
ORDER BY hour
