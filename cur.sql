-- Lease the oldest events that are due: at most the limit, under any plan, because the CTE is computed
-- once and the update takes its rows where they are; and no more than weigh $4 together, but always the first.
-- The commit need not be synced: a lost claim returns the work.
WITH unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    -- Asked once: a lease that ends meanwhile would else be neither over nor still to end.
    SELECT clock_timestamp() AS now
), due AS MATERIALIZED (
    SELECT ctid, position, event_seq, attempts FROM dispatch
    WHERE position > $2 AND (lease_until IS NULL OR lease_until <= (SELECT now FROM clock))
    ORDER BY position
    LIMIT 500
    FOR UPDATE SKIP LOCKED
), sized AS MATERIALIZED (
    -- Each event is looked up once, here; data out of line stays where it is until a row of the answer needs it.
    SELECT due.ctid, due.position, due.attempts + 1 AS attempts, (coalesce(octet_length(e.data), 0) + 16 * least(coalesce(octet_length(e.extensions::text), 0), 16777216)) AS weight,
        sum((coalesce(octet_length(e.data), 0) + 16 * least(coalesce(octet_length(e.extensions::text), 0), 16777216))) OVER (ORDER BY due.position ROWS UNBOUNDED PRECEDING) AS upto, e.created_at,
        e.seq, e.type, e.source, e.id, e.subject, e.time, e.datacontenttype, e.dataschema, e.extensions, e.data
    FROM due LEFT JOIN LATERAL (SELECT * FROM events WHERE seq = due.event_seq LIMIT 1) e ON true
), claimed AS (
    UPDATE dispatch d
    SET lease_until = (SELECT now FROM clock) + $3::interval, lease_token = $1, attempts = d.attempts + 1
    -- Locked, so that nobody moves them.
    WHERE d.ctid = ANY (ARRAY(SELECT ctid FROM sized WHERE upto <= $4::bigint OR upto = weight))
), facts AS MATERIALIZED (
    SELECT count(*) AS due, count(*) FILTER (WHERE taken) AS taken, max(upto) FILTER (WHERE taken) AS weight,
        min(created_at) FILTER (WHERE taken) AS oldest, max(created_at) FILTER (WHERE taken) AS newest
    FROM (SELECT upto, created_at, upto <= $4 OR upto = weight AS taken FROM sized) s
)
-- One row for what else there is to know, and one for each event: what stands in every row is sent and decoded in every row.
-- Here `seq` and `size` are for how many microseconds the oldest and the newest of them have been on record.
SELECT
    NULL::bigint AS position, NULL::int AS attempts,
    (extract(epoch FROM clock.now - oldest) * 1000000)::bigint AS seq, NULL::text AS type, NULL::text AS source,
    NULL::text AS id, NULL::text AS subject, NULL::bytea AS time, NULL::text AS datacontenttype, NULL::text AS dataschema,
    NULL::text AS extensions, NULL::bytea AS data,
    (extract(epoch FROM clock.now - newest) * 1000000)::bigint AS size,
    b.subscriptions_version AS version,
    (SELECT min(s.due_at) - clock_timestamp() FROM scheduled s) AS scheduled_in,
    EXISTS (SELECT FROM deliveries w WHERE w.state IN ('pending', 'leased')) AS waiting,
    -- Claims go in order, so whatever is leased stands at the head. Asked only where nothing else is due.
    CASE WHEN facts.due < 500 THEN (
        SELECT min(head.lease_until) - clock_timestamp()
        FROM (SELECT lease_until FROM dispatch ORDER BY position LIMIT 2000) head
        WHERE head.lease_until > (SELECT now FROM clock)
    ) END AS expires_in,
    facts.weight, facts.due = 500 OR facts.taken < facts.due AS more, clock.now
FROM bus b
CROSS JOIN unsynced
CROSS JOIN clock
CROSS JOIN facts
UNION ALL
SELECT
    e.position, e.attempts, e.seq, e.type, e.source, e.id, e.subject, timestamptz_send(coalesce(e.time, e.created_at)),
    e.datacontenttype, e.dataschema, CASE WHEN e.weight <= 16777216 THEN e.extensions::text END AS extensions, CASE WHEN e.upto <= 1048576 OR e.weight = 0 THEN e.data END AS data, CASE WHEN e.upto > 1048576 THEN e.weight END AS size, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM sized e
WHERE (upto <= $4 OR upto = weight) AND seq IS NOT NULL
