WITH served AS (
    SELECT time_bucket($bucket, time, $since) AS bucket, endpoint, count(*) AS requests, median(ttft_ms) AS ttft_p50_ms,
        count(*) / sum(count(*)) OVER (PARTITION BY time_bucket($bucket, time, $since)) AS share
    FROM requests WHERE time >= $since AND time < $until AND endpoint <> '' AND status = 'ok'
    GROUP BY bucket, endpoint
),
failed AS (
    SELECT time_bucket($bucket, time, $since) AS bucket, endpoint, count(*) FILTER (is_failure(outcome)) AS failures
    FROM attempts WHERE time >= $since AND time < $until
    GROUP BY bucket, endpoint
),
foretold AS (
    SELECT time_bucket($bucket, time, $since) AS bucket, endpoint, avg(risk) AS mean_risk
    FROM health WHERE time >= $since AND time < $until
    GROUP BY bucket, endpoint
)
SELECT
    unix_s(bucket) AS time, endpoint,
    coalesce(requests, 0) AS requests, coalesce(share, 0) AS share, coalesce(failures, 0) AS failures,
    ttft_p50_ms, mean_risk
FROM served
FULL JOIN failed USING (bucket, endpoint)
FULL JOIN foretold USING (bucket, endpoint)
ORDER BY bucket, endpoint
