-- How often a delivery was claimed.
SELECT attempts FROM deliveries WHERE event_seq = ? AND subscription_id = ?
