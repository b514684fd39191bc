-- One row per endpoint of a model: what is normal for it, from the successes of the period. Quantiles are those of a t-digest,
-- whose memory does not grow with the history.
WITH evidence AS (
    SELECT *, coalesce(generation_ms, latency_ms - ttft_ms) AS streamed_ms
    FROM attempts WHERE model = $model AND time >= $since AND time < $until AND is_evidence(outcome)
)
SELECT
    endpoint, any_value(provider) AS provider, any_value(region) AS region, any_value(zone) AS zone,
    count(*) AS attempts,
    approx_quantile(ttft_ms, [0.16, 0.5, 0.84]) FILTER (outcome = 'ok' AND kind <> 'probe') AS ttft_ms,
    approx_quantile(latency_ms, [0.16, 0.5, 0.84]) FILTER (outcome = 'ok' AND kind <> 'probe' AND ttft_ms IS NULL) AS reply_ms,
    approx_quantile(latency_ms, [0.16, 0.5, 0.84]) FILTER (outcome = 'ok' AND kind = 'probe') AS probe_ms,
    approx_quantile(1000.0 * output_tokens / streamed_ms, 0.5)
        FILTER (outcome = 'ok' AND kind <> 'probe' AND output_tokens > 1 AND streamed_ms > 0) AS tokens_per_s,
    1e6 * sum(cost_usd) / nullif(sum(input_tokens + coalesce(output_tokens, 0)) FILTER (cost_usd IS NOT NULL), 0) AS usd_per_mtok
FROM evidence
GROUP BY endpoint
ORDER BY endpoint
