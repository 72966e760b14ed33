-- Record one delivery that succeeded at its dispatch, unless somebody acknowledged it before.
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
VALUES (?, ?, 'delivered', ?, ?)
ON CONFLICT DO NOTHING
