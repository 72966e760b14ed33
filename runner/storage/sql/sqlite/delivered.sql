-- Record that each of these events was delivered at once to each of these subscriptions.
INSERT INTO deliveries (event_seq, subscription_id, state, attempts, updated_at)
SELECT work.value, subscription.value, 'delivered', ?, ?
FROM json_each(?) AS work CROSS JOIN json_each(?) AS subscription
