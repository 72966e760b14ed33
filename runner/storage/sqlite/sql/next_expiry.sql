-- When the next lease in the queue ends.
SELECT min(lease_until) FROM dispatch WHERE lease_until > ?
