-- Schedules that are due, earliest first; whether the last occurrence has ended is asked where it matters.
SELECT s.id, s.revision, s.name, s.spec, s.tick,
       json_extract(s.spec, '$.overlap') <> 'allow' AND s.last_seq IS NOT NULL AND (
           EXISTS (SELECT 1 FROM dispatch WHERE position = s.last_position)
           OR EXISTS (SELECT 1 FROM scheduled WHERE event_seq = s.last_seq)
           OR EXISTS (SELECT 1 FROM deliveries WHERE event_seq = s.last_seq AND state IN ('pending', 'leased'))
       ),
       s.queued_until
FROM schedules s WHERE s.next_at <= ? ORDER BY s.next_at LIMIT ?
