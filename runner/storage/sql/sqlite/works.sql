-- The events of the rows just leased.
SELECT d.position, d.attempts, d.event_seq, e.type, e.source, e.id, e.subject, coalesce(e.time, e.created_at),
       e.datacontenttype, e.dataschema, e.extensions, e.data
FROM dispatch d JOIN events e ON e.seq = d.event_seq
WHERE d.position IN (SELECT value FROM json_each(?)) ORDER BY d.position
