-- Probes against live attempts, in the minutes that have both: a probe that says other things than the traffic misleads.
WITH by_minute AS (
    SELECT endpoint, time_bucket(INTERVAL 1 MINUTE, time) AS minute,
        count(*) FILTER (kind = 'probe') AS probes,
        count(*) FILTER (kind = 'probe' AND is_failure(outcome)) AS probes_failed,
        count(*) FILTER (kind <> 'probe') AS live,
        count(*) FILTER (kind <> 'probe' AND is_failure(outcome)) AS live_failed
    FROM attempts
    WHERE is_evidence(outcome) AND time >= $since AND time < $until
    GROUP BY endpoint, minute
)
SELECT endpoint, CAST(sum(probes) AS BIGINT), CAST(sum(probes_failed) AS BIGINT), CAST(sum(live) AS BIGINT),
    CAST(sum(live_failed) AS BIGINT)
FROM by_minute
WHERE probes > 0 AND live > 0
GROUP BY endpoint
ORDER BY endpoint
