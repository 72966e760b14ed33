-- How deliveries died. That they are dead is said in words that only the primary key fits: see settle_deliveries.sql.
SELECT d.event_seq, d.subscription_id, coalesce(d.last_error, ''), d.attempts, d.updated_at
FROM {deliveries} d JOIN unnest($1::bigint[], $2::int[]) AS k (event_seq, subscription_id)
    USING (event_seq, subscription_id)
WHERE d.state NOT IN ('pending', 'leased', 'delivered', 'cancelled')
