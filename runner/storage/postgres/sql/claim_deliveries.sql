-- Lease deliveries that are due, for each subscription at most its quota, so that a backlog of one never
-- hides another's; and no more than weigh $5 together, but always the first. Which subscriptions have any is found by
-- hopping over the index, one probe each.
WITH RECURSIVE unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    -- Asked once: a delivery that falls due meanwhile would else be neither due nor still to come.
    SELECT clock_timestamp() AS now
), waiting (id) AS (
    (SELECT subscription_id FROM {deliveries} WHERE state IN ('pending', 'leased') ORDER BY subscription_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.subscription_id FROM {deliveries} d
            WHERE d.state IN ('pending', 'leased') AND d.subscription_id > w.id
            ORDER BY d.subscription_id LIMIT 1)
    FROM waiting w WHERE w.id IS NOT NULL
), mine AS MATERIALIZED (
    SELECT q.id, q.quota, q.rank
    FROM unnest($3::int[], $4::int[]) WITH ORDINALITY AS q (id, quota, rank)
    WHERE q.id IN (SELECT id FROM waiting)
    ORDER BY q.rank
), due AS MATERIALIZED (
    SELECT mine.rank, d.due_at, d.event_seq, d.subscription_id,
        d.state = 'leased' AND d.lease_token IS NOT NULL AS suspect,
        -- Leased by nobody: it was deferred, and the time for its acknowledgement is over.
        CASE WHEN d.state = 'leased' AND d.lease_token IS NULL THEN d.due_at - d.updated_at END AS waited
    FROM mine CROSS JOIN LATERAL (
        SELECT event_seq, subscription_id, state, lease_token, due_at, updated_at FROM {deliveries}
        WHERE subscription_id = mine.id AND state IN ('pending', 'leased') AND due_at <= (SELECT now FROM clock)
        ORDER BY due_at LIMIT mine.quota FOR UPDATE SKIP LOCKED
    ) d
), sized AS MATERIALIZED (
    SELECT due.event_seq, due.subscription_id, due.suspect, due.waited, e.*, {weight} AS weight,
        sum({weight}) OVER (ORDER BY due.rank, due.due_at, due.event_seq ROWS UNBOUNDED PRECEDING) AS upto
    FROM due LEFT JOIN LATERAL (SELECT * FROM {events} WHERE seq = due.event_seq LIMIT 1) e ON true
), claimed AS (
    UPDATE {deliveries} d
    SET state = 'leased', lease_token = $1, due_at = clock_timestamp() + $2::interval, attempts = d.attempts + 1,
        updated_at = clock_timestamp()
    FROM sized
    WHERE d.event_seq = sized.event_seq AND d.subscription_id = sized.subscription_id
        AND (sized.upto <= $5::bigint OR sized.upto = sized.weight)
    RETURNING sized.*, d.attempts, d.last_error
)
SELECT
    e.event_seq, e.subscription_id, e.attempts, e.suspect,
    e.seq, e.type, e.source, e.id, e.subject, timestamptz_send(coalesce(e.time, e.created_at)) AS time,
    e.datacontenttype, e.dataschema, {content},
    e.waited, CASE WHEN e.waited IS NOT NULL THEN e.last_error END AS refusal,
    CASE WHEN e.attempts > CASE WHEN e.waited IS NULL THEN 1 ELSE 2 END THEN (
        -- The first one on record; after a retry by hand there are several of that number.
        SELECT clock_timestamp() - first.at + first.duration_us * interval '1 microsecond' FROM {attempts} first
        WHERE first.event_seq = e.event_seq AND first.subscription_id = e.subscription_id
        ORDER BY first.number, first.serial DESC LIMIT 1
    ) END AS age,
    extract(epoch FROM clock_timestamp() - e.created_at)::float8 AS recorded_ago,
    (SELECT min(next.due_at) - clock_timestamp() FROM mine CROSS JOIN LATERAL (
        SELECT due_at FROM {deliveries}
        WHERE subscription_id = mine.id AND state IN ('pending', 'leased') AND due_at > (SELECT now FROM clock)
        ORDER BY due_at LIMIT 1) next) AS next_due,
    EXISTS (SELECT FROM sized WHERE upto > $5 AND upto > weight) AS cut,
    (SELECT now FROM clock) AS now
FROM unsynced
LEFT JOIN claimed e ON e.seq IS NOT NULL
