-- The beginnings of alarms: what the risk was, what the alarm might do, and what had raised the risk.
SELECT unix_s(time) AS time, endpoint, provider, forecaster, risk, alarm, propensity, explanation
FROM health
WHERE explanation <> '' AND time >= $since AND time < $until
ORDER BY time, endpoint
