-- Recorded attempts as the events they were: sent, first byte, ended; in the order in which they became known. A latency counts only
-- with a success or from who was outrun, and a probe's not at all. An advised call is reported when it is over, all of it at once.
WITH numbered AS (
    SELECT *, row_number() OVER (ORDER BY time) AS attempt,
        coalesce(streamed, ttft_ms IS NOT NULL) AS in_stream,
        kind = 'advised' AS at_once,
        CASE heard WHEN '' THEN outcome WHEN $outrun THEN 'cancelled' ELSE heard END AS taken_for,
        outcome = 'ok' AND kind <> 'probe' AS counts
    FROM attempts
    WHERE time >= $since AND started <= $until
),
event AS (
    SELECT CASE WHEN at_once THEN unix_s(time) ELSE unix_s(started) END AS told, unix_s(started) AS time, 0 AS place,
        'started' AS kind, replica, endpoint, attempt, '' AS outcome,
        CAST(NULL AS DOUBLE) AS ttft_s, CAST(NULL AS DOUBLE) AS reply_s, 0 AS tokens, 0.0 AS generation_s,
        in_stream AS streamed
    FROM numbered
    UNION ALL
    SELECT unix_s(started) + ttft_ms / 1e3, unix_s(started) + ttft_ms / 1e3, 1, 'first_byte', replica, endpoint, attempt,
        '', NULL, NULL, 0, 0.0, true
    FROM numbered WHERE ttft_ms IS NOT NULL AND NOT at_once
    UNION ALL
    SELECT unix_s(time), unix_s(time), 2, 'finished', replica, endpoint, attempt, taken_for,
        CASE WHEN counts THEN ttft_ms / 1e3 WHEN heard = $outrun AND in_stream THEN latency_ms / 1e3 END,
        CASE WHEN counts AND ttft_ms IS NULL OR heard = $outrun AND NOT in_stream THEN latency_ms / 1e3 END,
        CASE WHEN counts THEN coalesce(output_tokens, 0) ELSE 0 END,
        CASE WHEN counts THEN coalesce(generation_ms, 0.0) / 1e3 ELSE 0.0 END,
        true
    FROM numbered
)
SELECT * EXCLUDE (place) FROM event WHERE told < unix_s(CAST($until AS TIMESTAMP)) ORDER BY told, place, attempt
