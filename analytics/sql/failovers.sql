-- One row per departure: an endpoint left service (first of the departed states since it was last active).
-- A quota departure is foretold by a 429, any other by a failure that is no rate limit.
WITH numbered AS (
    SELECT *, count(*) FILTER (to_state = 'active') OVER (
        PARTITION BY endpoint ORDER BY time, snapshot_version ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    ) AS episode
    FROM (SELECT DISTINCT ON (endpoint, time, to_state) * FROM transitions WHERE time < $until)
),
departure AS (
    SELECT *
    FROM numbered
    WHERE list_contains($departed_states, to_state)
    QUALIFY row_number() OVER (PARTITION BY endpoint, episode ORDER BY time, snapshot_version) = 1
),
spell AS (
    SELECT departure.*, back.time AS ended
    FROM departure
    ASOF LEFT JOIN (SELECT endpoint, time FROM transitions WHERE to_state = 'active' AND time < $until) AS back
        ON departure.endpoint = back.endpoint AND departure.time < back.time
    WHERE departure.time >= $since
),
evidence AS (
    SELECT spell.endpoint, spell.time AS started,
        min(attempts.time) FILTER (attempts.time <= spell.time) AS seen_before,
        min(attempts.time) FILTER (attempts.time > spell.time) AS seen_after
    FROM spell
    JOIN attempts ON attempts.endpoint = spell.endpoint
        AND attempts.time BETWEEN spell.time - INTERVAL 30 SECOND AND spell.time + INTERVAL 300 SECOND
    WHERE is_failure(attempts.outcome) AND attempts.time < $until
        AND (attempts.outcome = 'rate_limited') = (spell.event = $quota_event)
    GROUP BY ALL
),
-- Share of the model's requests the endpoint served in the 300 s before it left: what it would have gone on to serve.
usual AS (
    SELECT spell.endpoint, spell.time AS started,
        count(*) FILTER (requests.endpoint = spell.endpoint) / count(*) AS share
    FROM spell
    JOIN requests ON requests.model = spell.model
        AND requests.time >= spell.time - INTERVAL 300 SECOND AND requests.time < spell.time
    WHERE requests.endpoint <> ''
    GROUP BY ALL
),
meanwhile AS (
    SELECT spell.endpoint, spell.time AS started,
        count(*) AS served,
        count(*) FILTER (requests.endpoint = spell.endpoint) AS served_here
    FROM spell
    JOIN requests ON requests.model = spell.model
        AND requests.time >= spell.time AND requests.time < coalesce(spell.ended, $until)
    WHERE requests.endpoint <> ''
    GROUP BY ALL
)
SELECT
    spell.endpoint, spell.provider, spell.region, spell.model, spell.to_state AS state,
    spell.metric, spell.value, spell.threshold, spell.actor, spell.event, spell.note,
    unix_s(spell.time) AS start,
    unix_s(spell.ended) AS "end",
    unix_s(spell.ended) - unix_s(spell.time) AS duration_s,
    CASE WHEN evidence.seen_before IS NOT NULL THEN unix_s(evidence.seen_before) - unix_s(spell.time)
         ELSE unix_s(evidence.seen_after) - unix_s(spell.time) END AS lead_s,
    CAST(greatest(0, round(coalesce(usual.share * meanwhile.served - meanwhile.served_here, 0))) AS BIGINT) AS requests_moved
FROM spell
LEFT JOIN evidence ON evidence.endpoint = spell.endpoint AND evidence.started = spell.time
LEFT JOIN usual ON usual.endpoint = spell.endpoint AND usual.started = spell.time
LEFT JOIN meanwhile ON meanwhile.endpoint = spell.endpoint AND meanwhile.started = spell.time
ORDER BY spell.time, spell.endpoint
