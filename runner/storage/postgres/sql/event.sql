-- One event, as a claim reads it, with all of its data unless it is too large for an event.
SELECT type, source, id, subject, timestamptz_send(coalesce(time, created_at)), datacontenttype, dataschema, {content}
FROM (
    SELECT w.*, CASE WHEN w.weight > {largest} THEN w.weight ELSE 0 END AS upto
    FROM (SELECT e.*, {weight} AS weight FROM {events} e WHERE e.seq = $1) w
) e
