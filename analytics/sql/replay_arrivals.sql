-- What callers asked for in [since, until): requests served here, and calls they made themselves on our advice. Requests that no
-- endpoint would have taken are left out. A request is over within an hour.
WITH arrival AS (
    SELECT time - to_microseconds(CAST(latency_ms * 1000 AS BIGINT)) AS arrived, input_tokens, output_tokens,
        status <> 'ok' AND status <> 'CANCELLED' AS failed, ttft_ms, cost_usd, request_id
    FROM requests
    WHERE model = $model AND method NOT IN ('route', 'replay') AND NOT list_contains($callers_own, status)
        AND time >= $since AND time < CAST($until AS TIMESTAMP) + INTERVAL 1 HOUR
    UNION ALL
    SELECT started, input_tokens, output_tokens, is_failure(outcome), ttft_ms, cost_usd, decision_id
    FROM attempts
    WHERE model = $model AND kind = 'advised' AND number = 1
        AND time >= $since AND time < CAST($until AS TIMESTAMP) + INTERVAL 1 HOUR
)
SELECT unix_s(arrived) AS arrived, input_tokens, output_tokens, failed, ttft_ms, coalesce(cost_usd, 0) AS cost_usd
FROM arrival WHERE arrived >= $since AND arrived < $until
ORDER BY arrived, request_id
