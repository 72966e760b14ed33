-- Lease the oldest events that are due: at most the limit, under any plan, because the CTE is computed
-- once and the update takes its rows where they are; and no more than weigh $4 together, but always the first.
-- The commit need not be synced: a lost claim returns the work.
WITH unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    -- Asked once: a lease that ends meanwhile would else be neither over nor still to end.
    SELECT clock_timestamp() AS now
), sized AS MATERIALIZED (
    -- Each event is looked up once, here; data out of line stays where it is until a row of the answer needs it.
    SELECT due.ctid, due.position, due.attempts + 1 AS attempts, {weight} AS weight, e.created_at,
        e.seq, e.type, e.source, e.id, e.subject, e.time, e.datacontenttype, e.dataschema, e.extensions, e.data
    FROM (
        SELECT ctid, position, event_seq, attempts FROM {dispatch}
        WHERE position > $2 AND (lease_until IS NULL OR lease_until <= (SELECT now FROM clock))
        ORDER BY position
        LIMIT {limit}
        FOR UPDATE SKIP LOCKED
    ) due LEFT JOIN LATERAL (SELECT * FROM {events} WHERE seq = due.event_seq LIMIT 1) e ON true
), whole AS MATERIALIZED (
    SELECT count(*) AS due, sum(weight) AS weight, min(created_at) AS oldest, max(created_at) AS newest,
        sum(weight) > least($4::bigint, {at_once}) AS heavy
    FROM sized
), facts AS MATERIALIZED (
    -- What is taken, up to the position `last`, and with its data up to `at_once`. Weights are added up one by one only
    -- where all of them together are too much for either.
    SELECT due, due AS taken, weight, oldest, newest, {endless} AS last, {endless} AS at_once
    FROM whole WHERE heavy IS NOT TRUE
    UNION ALL
    SELECT whole.due, r.* FROM whole CROSS JOIN LATERAL (
        SELECT count(*) AS taken, max(upto) AS weight, min(created_at) AS oldest, max(created_at) AS newest,
            max(position) AS last, coalesce(max(position) FILTER (WHERE upto <= {at_once}), 0) AS at_once
        FROM (
            SELECT position, created_at, weight,
                sum(weight) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) AS upto
            FROM sized
        ) summed
        WHERE whole.heavy AND (upto <= $4 OR upto = weight)
    ) r WHERE whole.heavy
), claimed AS (
    UPDATE {dispatch} d
    SET lease_until = (SELECT now FROM clock) + $3::interval, lease_token = $1, attempts = d.attempts + 1
    -- Locked, so that nobody moves them.
    WHERE d.ctid = ANY (ARRAY(SELECT ctid FROM sized WHERE position <= (SELECT last FROM facts)))
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
    (SELECT min(s.due_at) - clock_timestamp() FROM {scheduled} s) AS scheduled_in,
    EXISTS (SELECT FROM {deliveries} w WHERE w.state IN ('pending', 'leased')) AS waiting,
    -- Claims go in order, so whatever is leased stands at the head. Asked only where nothing else is due.
    CASE WHEN facts.due < {limit} THEN (
        SELECT min(head.lease_until) - clock_timestamp()
        FROM (SELECT lease_until FROM {dispatch} ORDER BY position LIMIT 2000) head
        WHERE head.lease_until > (SELECT now FROM clock)
    ) END AS expires_in,
    facts.weight, facts.due = {limit} OR facts.taken < facts.due AS more, clock.now
FROM {bus} b
CROSS JOIN unsynced
CROSS JOIN clock
CROSS JOIN facts
UNION ALL
SELECT
    e.position, e.attempts, e.seq, e.type, e.source, e.id, e.subject, timestamptz_send(coalesce(e.time, e.created_at)),
    e.datacontenttype, e.dataschema, {content_at_once}, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM sized e CROSS JOIN facts
WHERE e.position <= facts.last AND e.seq IS NOT NULL
