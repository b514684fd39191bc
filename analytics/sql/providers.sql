-- One row per endpoint seen in the period, whether by an attempt, a request or a health sample.
WITH attempted AS (
    SELECT endpoint, any_value(provider) AS provider, any_value(region) AS region, any_value(model) AS model,
        count(*) FILTER (kind <> 'probe') AS attempts,
        count(*) FILTER (kind = 'probe') AS probes,
        count(*) FILTER (outcome = 'ok' AND kind <> 'probe')
            / nullif(count(*) FILTER (is_evidence(outcome) AND kind <> 'probe'), 0) AS success_rate,
        quantile_cont(ttft_ms, [0.5, 0.95, 0.99]) FILTER (outcome = 'ok' AND kind <> 'probe') AS ttft_ms,
        quantile_cont(latency_ms, [0.5, 0.95, 0.99]) FILTER (outcome = 'ok' AND kind <> 'probe') AS latency_ms
    FROM attempts WHERE time >= $since AND time < $until
    GROUP BY endpoint
),
classes AS (
    SELECT endpoint, map_from_entries(list((outcome, n) ORDER BY n DESC, outcome)) AS outcomes
    FROM (
        SELECT endpoint, outcome, count(*) AS n
        FROM attempts WHERE time >= $since AND time < $until AND kind <> 'probe'
        GROUP BY endpoint, outcome
    )
    GROUP BY endpoint
),
served AS (
    SELECT endpoint, any_value(provider) AS provider, any_value(region) AS region, any_value(model) AS model,
        count(*) AS requests, coalesce(sum(cost_usd), 0) AS cost_usd,
        count(*) / sum(count(*)) OVER () AS share
    FROM requests WHERE time >= $since AND time < $until AND endpoint <> '' AND status = 'ok'
    GROUP BY endpoint
),
-- The state is a fact about now, so it may have been set before the period.
current AS (
    SELECT endpoint, any_value(provider) AS provider, any_value(region) AS region, any_value(model) AS model,
        arg_max(state, time) AS state, bool_or(sampled AND time >= $since) AS sampled
    FROM (
        SELECT endpoint, provider, region, model, state, time, true AS sampled FROM health WHERE time < $until
        UNION ALL
        SELECT endpoint, provider, region, model, to_state, time, false FROM transitions WHERE time < $until
    )
    GROUP BY endpoint
)
SELECT
    endpoint,
    coalesce(attempted.provider, served.provider, current.provider) AS provider,
    coalesce(attempted.region, served.region, current.region) AS region,
    coalesce(attempted.model, served.model, current.model) AS model,
    coalesce(current.state, '') AS state,
    coalesce(served.requests, 0) AS requests,
    coalesce(served.share, 0) AS share,
    coalesce(attempted.attempts, 0) AS attempts,
    coalesce(attempted.probes, 0) AS probes,
    attempted.success_rate,
    coalesce(classes.outcomes, MAP {}) AS outcomes,
    attempted.ttft_ms[1] AS ttft_p50_ms, attempted.ttft_ms[2] AS ttft_p95_ms, attempted.ttft_ms[3] AS ttft_p99_ms,
    attempted.latency_ms[1] AS latency_p50_ms, attempted.latency_ms[2] AS latency_p95_ms, attempted.latency_ms[3] AS latency_p99_ms,
    CAST(coalesce(served.cost_usd, 0) AS DOUBLE) AS cost_usd
FROM attempted
FULL JOIN classes USING (endpoint)
FULL JOIN served USING (endpoint)
FULL JOIN current USING (endpoint)
WHERE attempted.endpoint IS NOT NULL OR served.endpoint IS NOT NULL OR current.sampled
ORDER BY requests DESC, endpoint
