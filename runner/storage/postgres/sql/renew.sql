-- Extend the leases that are still ours. (For the words about the state see settle_deliveries.sql.)
UPDATE {deliveries} d SET due_at = clock_timestamp() + $4::interval
FROM unnest($1::bigint[], $2::int[], $3::bigint[]) AS r (event_seq, subscription_id, token)
WHERE d.event_seq = r.event_seq AND d.subscription_id = r.subscription_id
  AND d.lease_token = r.token AND d.state NOT IN ('pending', 'delivered', 'dead', 'cancelled')
RETURNING d.event_seq, d.subscription_id
