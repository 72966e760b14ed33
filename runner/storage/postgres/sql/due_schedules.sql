-- Schedules that are due, earliest first; in the first row what else there is to know. Only read: who fires one says what
-- was seen of it. Whether the last occurrence has ended is asked where it matters.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), due AS MATERIALIZED (
    SELECT * FROM {schedules} WHERE next_at <= (SELECT now FROM clock) ORDER BY next_at LIMIT {limit}
)
SELECT
    NULL::int AS id, NULL::bigint AS revision, NULL::text AS name, NULL::text AS spec, now AS tick,
    NULL::timestamptz AS queued_until, false AS busy,
    (SELECT min(s.next_at) FROM {schedules} s WHERE s.next_at > now) - now AS next_in
FROM clock
UNION ALL
SELECT
    d.id, d.revision, d.name, d.spec::text, d.tick, d.queued_until,
    d.spec ->> 'overlap' <> 'allow' AND d.last_seq IS NOT NULL AND (
        EXISTS (SELECT FROM {dispatch} q WHERE q.position = d.last_position)
        OR EXISTS (SELECT FROM {scheduled} q WHERE q.event_seq = d.last_seq)
        OR EXISTS (SELECT FROM {deliveries} w WHERE w.event_seq = d.last_seq AND w.state IN ('pending', 'leased'))
    ),
    NULL
FROM due d
