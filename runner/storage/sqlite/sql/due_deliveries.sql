-- The deliveries of one subscription that a claim may take, earliest first.
SELECT event_seq, subscription_id, state = 'leased' AND lease_token IS NOT NULL,
       -- Leased by nobody: it was deferred, and the time for its acknowledgement is over.
       CASE WHEN state = 'leased' AND lease_token IS NULL THEN due_at - updated_at END
FROM deliveries
WHERE subscription_id = ? AND state IN ('pending', 'leased') AND due_at <= ? ORDER BY due_at LIMIT ?
