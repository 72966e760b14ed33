-- Record that each of these events was delivered at once to each of these subscriptions, unless somebody
-- acknowledged it before.
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT work.value, subscription.value, 'delivered', ?, ?
FROM json_each(?) AS work CROSS JOIN json_each(?) AS subscription
WHERE true ON CONFLICT DO NOTHING
