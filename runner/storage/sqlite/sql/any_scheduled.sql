-- Whether a scheduled event has fallen due; reads only.
SELECT 1 FROM scheduled WHERE due_at <= ? LIMIT 1
