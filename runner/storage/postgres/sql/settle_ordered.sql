-- Settle deliveries one by one just as settle_deliveries.sql does; those of ordered subscriptions ($8) that have ended
-- leave their line.
WITH settled AS (
    UPDATE {deliveries} d
    SET state = r.state, attempts = r.attempts, last_error = r.error, lease_token = NULL,
        updated_at = clock_timestamp(),
        due_at = CASE WHEN r.state IN ('pending', 'leased') THEN clock_timestamp() + r.due_in END
    FROM unnest($1::bigint[], $2::int[], $3::text[], $4::int[], $5::interval[], $6::bigint[], $7::text[])
        AS r (event_seq, subscription_id, state, attempts, due_in, token, error)
    WHERE d.event_seq = r.event_seq AND d.subscription_id = r.subscription_id
      AND d.lease_token = r.token AND d.state NOT IN ('pending', 'delivered', 'dead', 'cancelled')
    RETURNING d.event_seq, d.subscription_id, d.state
), ended AS (
    DELETE FROM {turns} t USING settled s
    WHERE t.event_seq = s.event_seq AND t.subscription_id = s.subscription_id
      AND s.state NOT IN ('pending', 'leased') AND s.subscription_id = ANY ($8::int[])
)
SELECT event_seq, subscription_id FROM settled
