-- Lease the events that are due in these positions.
UPDATE dispatch SET lease_until = ?, lease_token = ?, attempts = attempts + 1
WHERE position BETWEEN ? AND ? AND (lease_until IS NULL OR lease_until <= ?)
