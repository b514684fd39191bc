-- One feature per column is put in place of the marker.
SELECT unix_s(time) AS time, replica, endpoint, provider, CAST(degraded AS TINYINT) AS y, known /* features */
FROM labelled_health($since, $until, $horizon_s)
WHERE feature_set = $feature_set
ORDER BY time, endpoint, replica
