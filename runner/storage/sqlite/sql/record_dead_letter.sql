-- Give what has just died to the subscription for it, in the transaction that records its death. What died, was
-- retried by hand and died again is given again.
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, due_at, updated_at)
VALUES (?, ?, 'pending', 0, ?, ?)
ON CONFLICT (event_seq, subscription_id) DO UPDATE
SET state = 'pending', attempts = 0, due_at = excluded.due_at, lease_token = NULL, last_error = NULL,
    updated_at = excluded.updated_at
