-- Keep an event until it is due.
INSERT INTO scheduled (event_seq, due_at) VALUES (?, ?)
