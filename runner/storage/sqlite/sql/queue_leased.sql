-- Add an event's row of work, leased to whoever publishes it.
INSERT INTO dispatch (event_seq, lease_until, lease_token, attempts) VALUES (?, ?, ?, 1)
