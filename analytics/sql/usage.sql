-- What was served and what it cost, by who pays and who served.
SELECT
    tenant, agent, model, provider,
    count(*) AS requests,
    CAST(coalesce(sum(input_tokens), 0) AS BIGINT) AS input_tokens,
    CAST(coalesce(sum(output_tokens), 0) AS BIGINT) AS output_tokens,
    CAST(coalesce(sum(cost_usd), 0) AS DOUBLE) AS cost_usd,
    count(*) FILTER (cost_usd IS NULL) AS uncounted
FROM usage
WHERE time >= $since AND time < $until
GROUP BY tenant, agent, model, provider
ORDER BY cost_usd DESC, requests DESC, tenant, agent, model, provider
