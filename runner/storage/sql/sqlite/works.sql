-- The events of the rows in these positions that are leased under the token.
SELECT d.position, d.attempts, d.event_seq, e.type, e.source, e.id, e.subject, coalesce(e.time, e.created_at),
       e.datacontenttype, e.dataschema, e.extensions, e.data
FROM dispatch d JOIN events e ON e.seq = d.event_seq
WHERE d.position BETWEEN ? AND ? AND d.lease_token = ? ORDER BY d.position
