-- What of these subscriptions is leased under a token; only asked for when an event of it cannot be read.
SELECT event_seq, subscription_id, attempts FROM {deliveries}
WHERE subscription_id = ANY ($2::int[]) AND state IN ('pending', 'leased') AND lease_token = $1
ORDER BY event_seq
