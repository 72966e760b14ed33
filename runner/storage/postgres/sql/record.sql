-- Record deliveries row by row, in the transaction that removed their events' rows of work, except
-- those that somebody acknowledged before.
INSERT INTO {deliveries} (event_seq, subscription_id, state, attempts, due_at, lease_token, last_error, updated_at)
SELECT r.event_seq, r.subscription_id, r.state, r.attempts,
       CASE WHEN r.state IN ('pending', 'leased') THEN clock_timestamp() + r.due_in END,
       CASE WHEN r.state = 'leased' THEN r.token END, r.error, clock_timestamp()
FROM unnest($1::bigint[], $2::int[], $3::text[], $4::int[], $5::interval[], $6::bigint[], $7::text[])
    AS r (event_seq, subscription_id, state, attempts, due_in, token, error)
ON CONFLICT DO NOTHING
