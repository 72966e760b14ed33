-- When the oldest event was recorded.
SELECT created_at FROM events ORDER BY seq LIMIT 1
