WITH period AS (
    SELECT * FROM requests WHERE time >= $since AND time < $until
),
figures AS (
    SELECT
        count(*) AS requests,
        count(*) FILTER (status <> 'ok') AS failed,
        count(*) FILTER (failed_over) AS failed_over,
        quantile_cont(latency_ms, [0.5, 0.95, 0.99]) FILTER (status = 'ok') AS latency,
        quantile_cont(ttft_ms, [0.5, 0.95, 0.99]) FILTER (status = 'ok') AS ttft,
        quantile_cont(latency_ms, [0.5, 0.95, 0.99]) FILTER (status = 'ok' AND failed_over) AS moved_latency,
        quantile_cont(ttft_ms, [0.5, 0.95, 0.99]) FILTER (status = 'ok' AND failed_over) AS moved_ttft,
        CAST(coalesce(sum(input_tokens), 0) AS BIGINT) AS input_tokens,
        CAST(coalesce(sum(output_tokens), 0) AS BIGINT) AS output_tokens,
        CAST(coalesce(sum(cost_usd), 0) AS DOUBLE) AS cost_usd
    FROM period
)
SELECT
    requests, failed, failed_over,
    latency[1] AS latency_p50_ms, latency[2] AS latency_p95_ms, latency[3] AS latency_p99_ms,
    ttft[1] AS ttft_p50_ms, ttft[2] AS ttft_p95_ms, ttft[3] AS ttft_p99_ms,
    moved_latency[1] AS failed_over_latency_p50_ms, moved_latency[2] AS failed_over_latency_p95_ms,
    moved_latency[3] AS failed_over_latency_p99_ms,
    moved_ttft[1] AS failed_over_ttft_p50_ms, moved_ttft[2] AS failed_over_ttft_p95_ms,
    moved_ttft[3] AS failed_over_ttft_p99_ms,
    input_tokens, output_tokens, cost_usd
FROM figures
