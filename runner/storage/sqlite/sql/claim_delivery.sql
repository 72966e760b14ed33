-- Lease one delivery.
UPDATE deliveries SET state = 'leased', attempts = attempts + 1, due_at = ?, lease_token = ?, updated_at = ?
WHERE event_seq = ? AND subscription_id = ?
