-- Events that have expired and are to be looked at.
SELECT event_seq, expires_at FROM expiries WHERE look_at <= ? ORDER BY look_at LIMIT ?
