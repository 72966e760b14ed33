-- The first and the last of the oldest events that are due, and how many they are: at most the limit.
SELECT min(position), max(position), count(*) FROM (
    SELECT position FROM dispatch WHERE lease_until IS NULL OR lease_until <= ? ORDER BY position LIMIT ?
)
