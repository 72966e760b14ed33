-- The deliveries of one subscription that a claim may take, earliest first.
SELECT event_seq, subscription_id, state = 'leased' FROM deliveries
WHERE subscription_id = ? AND state IN ('pending', 'leased') AND due_at <= ? ORDER BY due_at LIMIT ?
