-- The event of a delivery just leased.
SELECT d.attempts, e.type, e.source, e.id, e.subject, coalesce(e.time, e.created_at),
       e.datacontenttype, e.dataschema, e.extensions, e.data
FROM deliveries d JOIN events e ON e.seq = d.event_seq
WHERE d.event_seq = ? AND d.subscription_id = ?
