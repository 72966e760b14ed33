-- Extend one lease that is still ours.
UPDATE deliveries SET due_at = ? WHERE event_seq = ? AND subscription_id = ? AND state = 'leased' AND lease_token = ?
