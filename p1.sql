WITH unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), due AS MATERIALIZED (
    SELECT ctid, position, event_seq, attempts FROM dispatch
    WHERE position > $2 AND (lease_until IS NULL OR lease_until <= (SELECT now FROM clock))
    ORDER BY position
    LIMIT 500
    FOR UPDATE SKIP LOCKED
), sized AS MATERIALIZED (
    SELECT due.ctid, due.position, due.attempts + 1 AS attempts, (coalesce(octet_length(e.data), 0) + 16 * least(coalesce(octet_length(e.extensions::text), 0), 16777216)) AS weight, e.created_at,
        e.seq, e.type, e.source, e.id, e.subject, e.time, e.datacontenttype, e.dataschema, e.extensions, e.data
    FROM due LEFT JOIN LATERAL (SELECT * FROM events WHERE seq = due.event_seq LIMIT 1) e ON true
), facts AS MATERIALIZED (
    SELECT count(*) AS due, sum(weight) as weight,
        min(created_at) AS oldest, max(created_at) AS newest
    FROM sized
), claimed AS (
    UPDATE dispatch d
    SET lease_until = (SELECT now FROM clock) + $3::interval, lease_token = $1, attempts = d.attempts + 1
    WHERE d.ctid = ANY (CASE WHEN (SELECT weight FROM facts) < $4::bigint THEN ARRAY(SELECT ctid FROM sized) END)
)

SELECT
    NULL::bigint AS position, NULL::int AS attempts,
    (extract(epoch FROM clock.now - oldest) * 1000000)::bigint AS seq, NULL::text AS type, NULL::text AS source,
    NULL::text AS id, NULL::text AS subject, NULL::bytea AS time, NULL::text AS datacontenttype, NULL::text AS dataschema,
    NULL::text AS extensions, NULL::bytea AS data,
    (extract(epoch FROM clock.now - newest) * 1000000)::bigint AS size,
    b.subscriptions_version AS version,
    (SELECT min(s.due_at) - clock_timestamp() FROM scheduled s) AS scheduled_in,
    EXISTS (SELECT FROM deliveries w WHERE w.state IN ('pending', 'leased')) AS waiting,
    CASE WHEN facts.due < 500 THEN (
        SELECT min(head.lease_until) - clock_timestamp()
        FROM (SELECT lease_until FROM dispatch ORDER BY position LIMIT 2000) head
        WHERE head.lease_until > (SELECT now FROM clock)
    ) END AS expires_in,
    facts.weight, facts.due = 500 AS more, clock.now
FROM bus b
CROSS JOIN unsynced
CROSS JOIN clock
CROSS JOIN facts
UNION ALL
SELECT
    e.position, e.attempts, e.seq, e.type, e.source, e.id, e.subject, timestamptz_send(coalesce(e.time, e.created_at)),
    e.datacontenttype, e.dataschema, e.extensions::text, e.data, NULL::int, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM sized e
WHERE (SELECT weight FROM facts) < $4::bigint AND seq IS NOT NULL