-- Record events of which some may be known already, due later (those wait in `scheduled`), or of use only until some time.
-- One statement is one transaction.
-- A known (source, id) with the same content is written again, so that the acknowledgement waits for the
-- same durability as the first one's; with other content it is left out, the counts differ, and the
-- division undoes everything.
WITH clock AS MATERIALIZED (
    -- Asked once: an event that falls due meanwhile would else be in both places, or in neither.
    SELECT clock_timestamp() AS now, {patience}
), input AS MATERIALIZED (
    SELECT i.*, coalesce(i.deliver_at, clock.now + i.delay) AS due_at
    FROM clock, unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[],
                       $8::text[], $9::bytea[], $11::timestamptz[], $12::interval[], $13::timestamptz[])
        AS i (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, deliver_at, delay, expires_at)
), recorded AS (
    INSERT INTO {events} AS e
        (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    SELECT id, source, type, subject, time, datacontenttype, dataschema, extensions::json, data, clock_timestamp()
    FROM input
    ON CONFLICT (source, id) DO UPDATE SET source = excluded.source
        WHERE {same_content}
    RETURNING e.seq, e.source, e.id, e.xmax = 0 AS fresh
), queued AS (
    INSERT INTO {dispatch} (event_seq)
    SELECT r.seq FROM recorded r JOIN input i USING (source, id) CROSS JOIN clock
    WHERE r.fresh AND (i.due_at IS NULL OR i.due_at <= clock.now) ORDER BY r.seq
), later AS (
    INSERT INTO {scheduled} (event_seq, due_at)
    SELECT r.seq, i.due_at FROM recorded r JOIN input i USING (source, id) CROSS JOIN clock
    WHERE r.fresh AND i.due_at > clock.now
), expiring AS (
    INSERT INTO {expiries} (event_seq, expires_at, look_at)
    SELECT r.seq, i.expires_at, i.expires_at FROM recorded r JOIN input i USING (source, id)
    WHERE r.fresh AND i.expires_at IS NOT NULL
)
SELECT seq, source, id, fresh, 1 / ((SELECT count(*) FROM recorded) = $10)::int AS complete FROM recorded
