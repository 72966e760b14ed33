-- Record the occurrences of schedules with their events, and what follows: one statement, one transaction. Only of those
-- that are due and as they were seen; whoever comes second finds them changed, and who comes at the same time passes over.
-- Their rows are locked, so that nobody else records occurrences of theirs.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::int[], $2::bigint[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[],
                         $6::timestamptz[], $7::bigint[], $8::bigint[], $9::timestamptz[], $10::timestamptz[])
        AS i (id, revision, seen, tick, next_at, last_tick, missed, skipped, queued_until, forget)
), held AS MATERIALIZED (
    SELECT i.* FROM {schedules} s JOIN input i ON i.id = s.id
    WHERE s.revision = i.revision AND s.tick = i.seen AND s.next_at <= clock_timestamp()
    ORDER BY s.id
    FOR UPDATE OF s SKIP LOCKED
), ticks AS MATERIALIZED (
    SELECT t.* FROM held
    JOIN unnest($11::int[], $12::timestamptz[], $13::text[], $14::text[], $15::text[], $16::text[], $17::text[],
                $18::bytea[])
        AS t (schedule_id, tick, id, source, type, subject, datacontenttype, data) ON t.schedule_id = held.id
    WHERE NOT EXISTS (SELECT FROM {occurrences} o WHERE o.schedule_id = t.schedule_id AND o.tick = t.tick)
), recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, data, created_at)
    SELECT id, source, type, subject, tick, datacontenttype, data, clock_timestamp() FROM ticks ORDER BY tick, schedule_id
    ON CONFLICT (source, id) DO NOTHING
    RETURNING seq, source, id
), queued AS (
    INSERT INTO {dispatch} (event_seq) SELECT seq FROM recorded ORDER BY seq
    RETURNING position, event_seq
), noted AS (
    INSERT INTO {occurrences} (schedule_id, tick, event_seq, created_at)
    SELECT t.schedule_id, t.tick, r.seq, clock_timestamp() FROM ticks t LEFT JOIN recorded r USING (source, id)
    ON CONFLICT DO NOTHING
), last AS (
    SELECT DISTINCT ON (t.schedule_id) t.schedule_id, q.event_seq, q.position
    FROM ticks t JOIN recorded r USING (source, id) JOIN queued q ON q.event_seq = r.seq
    ORDER BY t.schedule_id, t.tick DESC
), forgotten AS (
    DELETE FROM {occurrences} o USING held h WHERE o.schedule_id = h.id AND o.tick < h.forget
), moved AS (
    UPDATE {schedules} s
    SET tick = h.tick, next_at = h.next_at, last_tick = coalesce(h.last_tick, s.last_tick),
        last_seq = coalesce(l.event_seq, s.last_seq), last_position = coalesce(l.position, s.last_position),
        missed = s.missed + h.missed, skipped = s.skipped + h.skipped, queued_until = h.queued_until
    FROM held h LEFT JOIN last l ON l.schedule_id = h.id
    WHERE s.id = h.id
    RETURNING s.id
)
SELECT id, (SELECT count(*) FROM recorded) AS events FROM moved
