-- Record one delivery whose event's row of work was removed in the same transaction, unless somebody
-- acknowledged it before.
INSERT INTO deliveries
    (event_seq, subscription_id, state, attempts, due_at, lease_token, last_error, updated_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING
