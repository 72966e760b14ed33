-- One event, as a claim reads it.
SELECT type, source, id, subject, timestamptz_send(coalesce(time, created_at)), datacontenttype, dataschema, extensions::text, data
FROM {events} WHERE seq = $1
