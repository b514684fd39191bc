-- Recorded attempts as the events they were: sent, first byte, ended. A latency counts only with a success, and a probe's not at all.
WITH numbered AS (
    SELECT *, row_number() OVER (ORDER BY time) AS attempt,
        outcome = 'ok' AND kind <> 'probe' AS counts
    FROM attempts
    WHERE time >= $since AND started <= $until
),
event AS (
    SELECT unix_s(started) AS time, 0 AS place, 'started' AS kind, endpoint, attempt, '' AS outcome,
        CAST(NULL AS DOUBLE) AS ttft_s, CAST(NULL AS DOUBLE) AS reply_s, 0 AS tokens, 0.0 AS generation_s,
        ttft_ms IS NOT NULL AS streamed
    FROM numbered
    UNION ALL
    SELECT unix_s(started) + ttft_ms / 1e3, 1, 'first_byte', endpoint, attempt, '', NULL, NULL, 0, 0.0, true
    FROM numbered WHERE ttft_ms IS NOT NULL
    UNION ALL
    SELECT unix_s(time), 2, 'finished', endpoint, attempt, outcome,
        CASE WHEN counts THEN ttft_ms / 1e3 END,
        CASE WHEN counts AND ttft_ms IS NULL THEN latency_ms / 1e3 END,
        CASE WHEN counts THEN coalesce(output_tokens, 0) ELSE 0 END,
        CASE WHEN counts THEN coalesce(generation_ms, 0.0) / 1e3 ELSE 0.0 END,
        true
    FROM numbered
)
SELECT * EXCLUDE (place) FROM event WHERE time < unix_s(CAST($until AS TIMESTAMP)) ORDER BY time, place, attempt
