-- The same for one delivery.
SELECT event_seq, subscription_id, state = 'leased' AND lease_token IS NOT NULL,
       CASE WHEN state = 'leased' AND lease_token IS NULL THEN due_at - updated_at END
FROM deliveries
WHERE event_seq = ? AND subscription_id = ? AND state IN ('pending', 'leased') AND due_at <= ?
