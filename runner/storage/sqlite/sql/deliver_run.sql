-- Record that the works in these positions that are still held under the token were delivered at once to each of these
-- subscriptions, unless somebody acknowledged it before.
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT work.event_seq, subscription.value, 'delivered', work.attempts, ?
FROM dispatch work CROSS JOIN json_each(?) AS subscription
WHERE work.position BETWEEN ? AND ? AND work.lease_token = ? ON CONFLICT DO NOTHING
