-- Add an event's row of work.
INSERT INTO dispatch (event_seq) VALUES (?)
