-- Probes against the live attempts within three seconds of them: a probe that says other things than the traffic misleads. An endpoint
-- out of service is probed when it is at its worst and has no traffic; such probes have nobody to be compared with.
WITH evidence AS (
    SELECT endpoint, time, kind = 'probe' AS is_probe, is_failure(outcome) AS failed
    FROM attempts
    WHERE is_evidence(outcome)
        AND time >= CAST($since AS TIMESTAMP) - INTERVAL 3 SECOND AND time < CAST($until AS TIMESTAMP) + INTERVAL 3 SECOND
),
matched AS (
    SELECT endpoint, time, is_probe, failed,
        count(*) FILTER (NOT is_probe) OVER nearby AS live,
        count(*) FILTER (NOT is_probe AND failed) OVER nearby AS live_failed
    FROM evidence
    WINDOW nearby AS (
        PARTITION BY endpoint ORDER BY time RANGE BETWEEN INTERVAL 3 SECOND PRECEDING AND INTERVAL 3 SECOND FOLLOWING
    )
)
SELECT endpoint, count(*), count(*) FILTER (failed), CAST(sum(live) AS BIGINT), CAST(sum(live_failed) AS BIGINT)
FROM matched
WHERE is_probe AND live > 0 AND time >= $since AND time < $until
GROUP BY endpoint
ORDER BY endpoint
