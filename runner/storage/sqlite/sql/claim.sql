-- Lease the oldest events that are due: at most the limit.
UPDATE dispatch SET lease_until = ?, lease_token = ?, attempts = attempts + 1
WHERE position IN (
    SELECT position FROM dispatch WHERE lease_until IS NULL OR lease_until <= ? ORDER BY position LIMIT ?
) RETURNING position
