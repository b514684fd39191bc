-- How often each endpoint's attempts end in each class (0: success, else the place in $outcomes) in its good minutes: those with
-- fewer than 3 failures, or fewer than 10 %.
WITH evidence AS (
    SELECT endpoint, time_bucket(INTERVAL 1 MINUTE, time) AS minute,
        CASE WHEN outcome = 'ok' THEN 0 ELSE coalesce(list_position($outcomes, outcome), $other) END AS class
    FROM attempts WHERE model = $model AND time >= $since AND time < $until AND is_evidence(outcome)
),
counted AS (
    SELECT endpoint, minute, class, count(*) AS n FROM evidence GROUP BY ALL
),
judged AS (
    SELECT *, sum(n) OVER per_minute AS total, coalesce(sum(n) FILTER (class > 0) OVER per_minute, 0) AS failed
    FROM counted WINDOW per_minute AS (PARTITION BY endpoint, minute)
)
SELECT endpoint, class, CAST(sum(n) AS BIGINT) AS n
FROM judged WHERE failed < 3 OR failed < 0.1 * total
GROUP BY endpoint, class
ORDER BY endpoint, class
