-- What attempts say about their endpoints: those sent in [since, until), by the place of their endpoint in $endpoints. The class is
-- 0 for a success, else the place of the outcome in $outcomes; other failures count as $other. An attempt is known within an hour.
SELECT
    list_position($endpoints, endpoint) - 1 AS endpoint,
    unix_s(started) AS started,
    CASE WHEN outcome = 'ok' THEN 0 ELSE coalesce(list_position($outcomes, outcome), $other) END AS class,
    kind = 'probe' AS probe,
    CASE WHEN outcome = 'ok' THEN ttft_ms END AS ttft_ms,
    latency_ms,
    CASE WHEN outcome = 'ok' AND kind <> 'probe' AND output_tokens > 1 AND coalesce(generation_ms, latency_ms - ttft_ms) > 0
        THEN 1000.0 * output_tokens / coalesce(generation_ms, latency_ms - ttft_ms) END AS tokens_per_s
FROM attempts
WHERE model = $model AND list_contains($endpoints, endpoint) AND is_evidence(outcome)
    AND started >= $since AND started < $until
    AND time >= $since AND time < CAST($until AS TIMESTAMP) + INTERVAL 1 HOUR
ORDER BY started, endpoint
