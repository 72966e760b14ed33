-- When the next delivery of one subscription will be due.
SELECT min(due_at) FROM deliveries
WHERE subscription_id = ? AND state IN ('pending', 'leased') AND due_at > ?
