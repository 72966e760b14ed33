-- Take scheduled events that have fallen due, earliest first.
DELETE FROM scheduled WHERE event_seq IN (
    SELECT event_seq FROM scheduled WHERE due_at <= ? ORDER BY due_at, event_seq LIMIT ?
) RETURNING due_at, event_seq
