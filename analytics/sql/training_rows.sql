-- The samples of [since, end), with what came until `until`. One feature per column is put in place of the marker.
SELECT unix_s(time) AS time, replica, endpoint, provider, CAST(degraded AS TINYINT) AS y, known /* features */
FROM labelled_health($since, $until, $horizon_s)
WHERE feature_set = $feature_set AND time < $end
ORDER BY time, endpoint, replica
