-- Add the rows of work of all events between two seqs, leased to whoever publishes them.
INSERT INTO dispatch (event_seq, lease_until, lease_token, attempts)
SELECT seq, ?, ?, 1 FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq
