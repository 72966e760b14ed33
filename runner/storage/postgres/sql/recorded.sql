-- Find out which of these deliveries this very transaction has recorded, where some were on record before.
SELECT d.event_seq, d.subscription_id
FROM unnest($1::bigint[], $2::int[]) AS r (event_seq, subscription_id)
JOIN {deliveries} d ON d.event_seq = r.event_seq AND d.subscription_id = r.subscription_id
WHERE d.xmin = pg_current_xact_id()::xid
