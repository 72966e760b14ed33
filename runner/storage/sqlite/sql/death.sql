-- How a delivery died.
SELECT coalesce(last_error, ''), attempts, updated_at FROM deliveries
WHERE event_seq = ? AND subscription_id = ? AND state = 'dead'
