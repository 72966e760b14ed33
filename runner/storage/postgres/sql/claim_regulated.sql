-- Lease due deliveries of one subscription that has an order, a rate, or both.
-- In order ($5): the lines are visited one by one by hopping over the index from the key $6 on, at most {limit} of them,
-- and none where nothing is due; only the first of a line may go, and only once no earlier event waits to be dispatched.
-- Everything is seen in one snapshot, in which an earlier event has either its row in dispatch or its turn; a delivery
-- that has changed since is left out by the recheck of its row lock. By rate: the row of the pace is held until the
-- permits are charged. What is claimed weighs no more than $9 together, but the first always goes.
WITH RECURSIVE unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), kept AS MATERIALIZED (
    SELECT next_at FROM {paces} WHERE subscription_id = $3 AND $7::interval IS NOT NULL FOR UPDATE
), pace AS MATERIALIZED (
    -- Further ahead than it can be, it is of another rate, or of a clock that has been set back since.
    SELECT CASE WHEN kept.next_at > clock.now + ($7 + $8::interval) THEN clock.now ELSE kept.next_at END AS next_at
    FROM kept CROSS JOIN clock
), room AS MATERIALIZED (
    SELECT CASE
        WHEN $7 IS NULL THEN $4::int
        WHEN pace.next_at IS NULL THEN 0
        ELSE least($4, greatest(0, 1 + floor(
            extract(epoch FROM $8 - (greatest(pace.next_at, clock.now) - clock.now))
            / extract(epoch FROM $7))))::int
    END AS number
    FROM clock LEFT JOIN pace ON true
), barrier AS MATERIALIZED (
    SELECT coalesce((SELECT position FROM {dispatch} ORDER BY position LIMIT 1), 9223372036854775807) AS position
), ripe AS MATERIALIZED (
    SELECT FROM {deliveries}
    WHERE $5::bool AND subscription_id = $3 AND state IN ('pending', 'leased') AND due_at <= (SELECT now FROM clock)
    ORDER BY due_at LIMIT 1
), line (order_key, position, event_seq, hop) AS (
    (SELECT order_key, position, event_seq, 1 FROM {turns}
     WHERE EXISTS (SELECT FROM ripe) AND subscription_id = $3 AND order_key > $6::text ORDER BY order_key, position LIMIT 1)
    UNION ALL
    SELECT next.order_key, next.position, next.event_seq, line.hop + 1
    FROM line CROSS JOIN LATERAL (
        SELECT order_key, position, event_seq FROM {turns}
        WHERE subscription_id = $3 AND order_key > line.order_key ORDER BY order_key, position LIMIT 1
    ) next
    WHERE line.hop < {limit}
), head AS MATERIALIZED (
    SELECT line.order_key, line.event_seq, d.due_at
    FROM line CROSS JOIN barrier CROSS JOIN LATERAL (
        SELECT due_at FROM {deliveries}
        -- In words that only the primary key fits, and not the index of all that is due.
        WHERE event_seq = line.event_seq AND subscription_id = $3 AND state NOT IN ('delivered', 'dead', 'cancelled')
        LIMIT 1
    ) d
    WHERE line.position < barrier.position
), found AS MATERIALIZED (
    -- Each was leased by somebody, by nobody (deferred), or was pending: as in claim_deliveries.sql.
    SELECT found.event_seq, found.order_key, found.due_at,
        found.state = 'leased' AND found.lease_token IS NOT NULL AS suspect,
        CASE WHEN found.state = 'leased' AND found.lease_token IS NULL THEN found.due_at - found.updated_at END
            AS waited
    FROM (
        SELECT d.*, head.order_key
        FROM head CROSS JOIN LATERAL (
            SELECT event_seq, state, lease_token, due_at, updated_at FROM {deliveries}
            WHERE event_seq = head.event_seq AND subscription_id = $3
                AND state NOT IN ('delivered', 'dead', 'cancelled') AND due_at <= (SELECT now FROM clock)
            FOR UPDATE SKIP LOCKED
        ) d
        WHERE head.due_at <= (SELECT now FROM clock)
        UNION ALL
        SELECT d.*, NULL
        FROM (
            SELECT event_seq, state, lease_token, due_at, updated_at FROM {deliveries}
            WHERE NOT $5 AND subscription_id = $3 AND state IN ('pending', 'leased')
                AND due_at <= (SELECT now FROM clock)
            ORDER BY due_at LIMIT (SELECT number FROM room) FOR UPDATE SKIP LOCKED
        ) d
    ) found
    LIMIT (SELECT number FROM room)
), sized AS MATERIALIZED (
    SELECT found.event_seq, found.order_key, found.suspect, found.waited, e.*, {weight} AS weight,
        sum({weight}) OVER (ORDER BY found.order_key, found.due_at, found.event_seq ROWS UNBOUNDED PRECEDING) AS upto
    FROM found LEFT JOIN LATERAL (SELECT * FROM {events} WHERE seq = found.event_seq LIMIT 1) e ON true
), due AS MATERIALIZED (
    SELECT * FROM sized WHERE upto <= $9::bigint OR upto = weight
), claimed AS (
    UPDATE {deliveries} d
    SET state = 'leased', lease_token = $1, due_at = clock_timestamp() + $2::interval, attempts = d.attempts + 1,
        updated_at = clock_timestamp()
    FROM due WHERE d.event_seq = due.event_seq AND d.subscription_id = $3
    RETURNING due.*, d.attempts, d.last_error
), charged AS (
    UPDATE {paces} p SET next_at = greatest(pace.next_at, clock.now) + (SELECT count(*) FROM due) * $7
    FROM clock CROSS JOIN pace WHERE p.subscription_id = $3 AND $7 IS NOT NULL AND EXISTS (SELECT FROM due)
    RETURNING p.next_at
), outlook AS MATERIALIZED (
    SELECT cut OR room.number = taken AS full, CASE WHEN cut THEN taken ELSE room.number END AS room, cut
    FROM room, (SELECT count(*)::int AS taken FROM due) counted,
        (SELECT EXISTS (SELECT FROM sized WHERE upto > $9 AND upto > weight) AS cut) weighed
)
SELECT
    e.event_seq, $3::int AS subscription_id, e.attempts, e.suspect,
    e.seq, e.type, e.source, e.id, e.subject, timestamptz_send(coalesce(e.time, e.created_at)) AS time,
    e.datacontenttype, e.dataschema, {content},
    e.waited, CASE WHEN e.waited IS NOT NULL THEN e.last_error END AS refusal,
    CASE WHEN e.attempts > CASE WHEN e.waited IS NULL THEN 1 ELSE 2 END THEN (
        SELECT clock_timestamp() - first.at + first.duration_us * interval '1 microsecond' FROM {attempts} first
        WHERE first.event_seq = e.event_seq AND first.subscription_id = $3
        ORDER BY first.number, first.serial DESC LIMIT 1
    ) END AS age,
    extract(epoch FROM clock_timestamp() - e.created_at)::float8 AS recorded_ago,
    outlook.room,
    coalesce((SELECT next_at FROM charged), (SELECT next_at FROM pace)) - (SELECT now FROM clock) AS ahead,
    -- Where the next claim is to go on; nothing at the end of the lines.
    CASE WHEN outlook.full THEN (SELECT max(order_key) FROM due)
        ELSE (SELECT order_key FROM line WHERE hop = {limit}) END AS after,
    NOT outlook.full AND EXISTS (SELECT FROM line CROSS JOIN barrier WHERE line.position >= barrier.position) AS held_up,
    -- Of the lines only what stands first counts: another one may fall due as often as it likes.
    CASE WHEN NOT EXISTS (SELECT FROM ripe) THEN (
        SELECT min(next.due_at) - clock_timestamp() FROM (
            SELECT due_at FROM {deliveries}
            WHERE subscription_id = $3 AND state IN ('pending', 'leased') AND due_at > (SELECT now FROM clock)
            ORDER BY due_at LIMIT 1) next)
        WHEN NOT outlook.full THEN (
        SELECT min(due_at) - clock_timestamp() FROM head WHERE due_at > (SELECT now FROM clock))
    END AS next_due,
    outlook.cut,
    (SELECT now FROM clock) AS now
FROM unsynced CROSS JOIN outlook LEFT JOIN claimed e ON e.seq IS NOT NULL
