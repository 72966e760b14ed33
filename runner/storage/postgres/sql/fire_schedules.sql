-- Record the occurrences of schedules with their events, and what follows: one statement, one transaction. Only of those
-- that are due and as they were seen; whoever comes second finds them changed, and who comes at the same time passes over.
-- Their rows are locked, so that nobody else records occurrences of theirs. The planner takes each list for a few rows,
-- and would compare every row of one with every row of another; so each schedule is looked up by its id, and what belongs
-- to a key is found in an object.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::int[], $2::bigint[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[],
                         $6::timestamptz[], $7::bigint[], $8::bigint[], $9::timestamptz[], $10::timestamptz[])
        AS i (id, revision, seen, tick, next_at, last_tick, missed, skipped, queued_until, forget)
), held AS MATERIALIZED (
    SELECT i.* FROM input i CROSS JOIN LATERAL (
        SELECT FROM {schedules} s
        WHERE s.id = i.id AND s.revision = i.revision AND s.tick = i.seen AND s.next_at <= clock_timestamp()
        FOR UPDATE SKIP LOCKED
    ) AS locked
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
), last AS MATERIALIZED (
    SELECT jsonb_object_agg(t.schedule_id, r.seq ORDER BY t.tick) AS seqs FROM ticks t JOIN recorded r USING (source, id)
), places AS MATERIALIZED (
    SELECT jsonb_object_agg(event_seq, position) AS positions FROM queued
), forgotten AS (
    DELETE FROM {occurrences} o USING held h WHERE o.schedule_id = h.id AND o.tick < h.forget
), moved AS (
    UPDATE {schedules} s
    SET tick = h.tick, next_at = h.next_at, last_tick = coalesce(h.last_tick, s.last_tick),
        last_seq = coalesce((last.seqs ->> h.id::text)::bigint, s.last_seq),
        last_position = coalesce((places.positions ->> (last.seqs ->> h.id::text))::bigint, s.last_position),
        missed = s.missed + h.missed, skipped = s.skipped + h.skipped, queued_until = h.queued_until
    FROM held h, last, places
    WHERE s.id = h.id
    RETURNING s.id
)
SELECT id, (SELECT count(*) FROM recorded) AS events FROM moved
