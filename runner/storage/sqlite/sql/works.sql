-- The events of the rows in these positions that are leased under the token, and what each weighs; what is in none of the
-- pages of its row stays there until it is asked for.
SELECT d.position, d.attempts, d.event_seq,
       coalesce(length(e.data), 0) + 16 * coalesce(length(e.extensions), 0), length(e.data) > 65536,
       e.type, e.source, e.id, e.subject, coalesce(e.time, e.created_at), e.datacontenttype, e.dataschema,
       CASE WHEN length(e.extensions) <= 1048576 THEN e.extensions END, CASE WHEN length(e.data) <= 65536 THEN e.data END
FROM dispatch d JOIN events e ON e.seq = d.event_seq
WHERE d.position BETWEEN ? AND ? AND d.lease_token = ? ORDER BY d.position
