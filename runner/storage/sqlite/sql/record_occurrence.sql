-- Record that a tick has its event, unless it has one.
INSERT INTO occurrences (schedule_id, tick, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING
