-- The event of a delivery about to be leased, what it weighs, since when it is on record, and how long ago its first attempt
-- on record began; after a retry by hand there are several of that number.
SELECT d.attempts + 1, d.last_error, CASE WHEN d.attempts >= CASE WHEN ? IS NULL THEN 1 ELSE 2 END THEN (
           SELECT ? - a.at + a.duration_us FROM attempts a
           WHERE a.event_seq = d.event_seq AND a.subscription_id = d.subscription_id
           ORDER BY a.number, a.serial DESC LIMIT 1
       ) END,
       coalesce(length(e.data), 0) + 16 * coalesce(length(e.extensions), 0), length(e.data) > 65536, e.created_at,
       e.type, e.source, e.id, e.subject, coalesce(e.time, e.created_at), e.datacontenttype, e.dataschema,
       CASE WHEN length(e.extensions) <= 1048576 THEN e.extensions END, CASE WHEN length(e.data) <= 65536 THEN e.data END
FROM deliveries d JOIN events e ON e.seq = d.event_seq
WHERE d.event_seq = ? AND d.subscription_id = ?
