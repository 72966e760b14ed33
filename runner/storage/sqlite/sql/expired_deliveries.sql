-- What of an expired event waits for anything, or is leased by nobody any more; without dead letters, which tell of it.
SELECT event_seq, subscription_id, attempts + 1 FROM deliveries
WHERE event_seq = ? AND (state = 'pending' OR (state = 'leased' AND due_at <= ?))
    AND subscription_id NOT IN (SELECT id FROM subscriptions WHERE name LIKE '%.dead-letter')
