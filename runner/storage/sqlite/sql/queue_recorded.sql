-- Add the rows of work of all events between two seqs.
INSERT INTO dispatch (event_seq) SELECT seq FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq
