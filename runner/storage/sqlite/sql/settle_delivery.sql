-- Settle one delivery: only where the lease is still ours.
UPDATE deliveries SET state = ?, attempts = ?, due_at = ?, lease_token = NULL, last_error = ?, updated_at = ?
WHERE event_seq = ? AND subscription_id = ? AND state = 'leased' AND lease_token = ?
