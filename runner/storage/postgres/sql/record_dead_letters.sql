-- Give what has just died to the subscriptions for it, in the transaction that records the deaths. What died, was
-- retried by hand and died again is given again.
INSERT INTO {deliveries} AS d (event_seq, subscription_id, state, attempts, due_at, updated_at)
SELECT l.event_seq, l.subscription_id, 'pending', 0, clock_timestamp(), clock_timestamp()
FROM unnest($1::bigint[], $2::int[]) AS l (event_seq, subscription_id)
ON CONFLICT (event_seq, subscription_id) DO UPDATE
SET state = 'pending', attempts = 0, due_at = excluded.due_at, lease_token = NULL, last_error = NULL,
    updated_at = excluded.updated_at
