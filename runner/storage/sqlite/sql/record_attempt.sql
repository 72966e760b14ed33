-- Record one attempt in the transaction that records its delivery.
INSERT INTO attempts (event_seq, subscription_id, number, at, duration_us, status, error, excerpt)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
