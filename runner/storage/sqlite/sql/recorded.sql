-- Since when two events are on record.
SELECT min(created_at), max(created_at) FROM events WHERE seq IN (?, ?)
