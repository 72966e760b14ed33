-- The first of the next line of a subscription.
SELECT order_key, position, event_seq FROM turns
WHERE subscription_id = ? AND order_key > ? ORDER BY order_key, position LIMIT 1
