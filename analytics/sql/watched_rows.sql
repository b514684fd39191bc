-- What the champion and one shadow forecast at the same moments of [since, end), with what followed until `until`.
SELECT unix_s(time) AS time, endpoint, provider, risk, shadow_risk, CAST(degraded AS TINYINT) AS y, known
FROM labelled_health($since, $until, $horizon_s)
WHERE shadow = $shadow AND shadow_risk IS NOT NULL AND risk IS NOT NULL AND time < $end
ORDER BY time, endpoint
