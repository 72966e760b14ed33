-- The same for one delivery that is unfinished, and when it is due.
SELECT event_seq, subscription_id, state = 'leased' AND lease_token IS NOT NULL,
       CASE WHEN state = 'leased' AND lease_token IS NULL THEN due_at - updated_at END, due_at
FROM deliveries
WHERE event_seq = ? AND subscription_id = ? AND state IN ('pending', 'leased')
