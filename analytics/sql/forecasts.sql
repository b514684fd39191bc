-- How well risk foretold what followed. Only samples with evidence afterwards are judged. An onset is a degraded moment after at
-- least 300 s without one; it was foreseen if an alarm came within the 300 s before, and its lead is that of the earliest.
WITH sample AS (
    SELECT endpoint, forecaster, time, risk, CAST(degraded AS INTEGER) AS y, known, risk >= $threshold AS alarm
    FROM labelled_health($since, $until, $horizon_s)
    WHERE risk IS NOT NULL
),
onset AS (
    SELECT endpoint, time
    FROM degraded_moments($since, $until)
    QUALIFY coalesce(time - lag(time) OVER (PARTITION BY endpoint ORDER BY time) > INTERVAL 300 SECOND, true)
),
foreseen AS (
    SELECT sample.endpoint, sample.forecaster, onset.time,
        unix_s(onset.time) - unix_s(min(sample.time) FILTER (sample.alarm)) AS lead_s
    FROM onset
    JOIN sample ON sample.endpoint = onset.endpoint
        AND sample.time >= onset.time - INTERVAL 300 SECOND AND sample.time < onset.time
    GROUP BY sample.endpoint, sample.forecaster, onset.time
),
leads AS (
    SELECT endpoint, forecaster, count(*) AS onsets, count(lead_s) AS onsets_foreseen, median(lead_s) AS median_lead_s
    FROM foreseen GROUP BY endpoint, forecaster
),
scored AS (
    SELECT endpoint, forecaster,
        count(*) AS samples,
        count(*) FILTER (known) AS judged,
        avg(risk) AS mean_risk,
        count(*) FILTER (alarm) AS alarms,
        count(*) FILTER (known AND alarm AND y = 1) AS hits,
        count(*) FILTER (known AND alarm) AS judged_alarms,
        count(*) FILTER (known AND y = 1) AS positives,
        avg((risk - y) ** 2) FILTER (known) AS brier,
        avg(y) FILTER (known) AS base_rate
    FROM sample GROUP BY endpoint, forecaster
)
SELECT
    endpoint, forecaster, samples, judged, mean_risk, base_rate, alarms,
    hits / nullif(judged_alarms, 0) AS "precision",
    hits / nullif(positives, 0) AS recall,
    brier,
    1 - brier / nullif(base_rate * (1 - base_rate), 0) AS brier_skill,
    coalesce(onsets, 0) AS onsets,
    coalesce(onsets_foreseen, 0) AS onsets_foreseen,
    median_lead_s
FROM scored
LEFT JOIN leads USING (endpoint, forecaster)
ORDER BY endpoint, forecaster
