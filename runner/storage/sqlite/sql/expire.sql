-- Note until when an event is of use.
INSERT INTO expiries (event_seq, expires_at, look_at) VALUES (?, ?, ?)
