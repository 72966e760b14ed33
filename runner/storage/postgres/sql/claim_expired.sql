-- Lease what waits of events that have expired, whatever it waits for, but for dead letters: those tell of it. What was to
-- be dispatched later is due now. A row goes once nothing can come any more: a dispatch that began before may still
-- write deliveries, so it is looked at again after a minute.
WITH unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), over AS MATERIALIZED (
    SELECT event_seq, expires_at FROM {expiries} WHERE look_at <= (SELECT now FROM clock)
    ORDER BY look_at LIMIT {limit} FOR UPDATE SKIP LOCKED
), waiting AS MATERIALIZED (
    SELECT d.event_seq, d.subscription_id, over.expires_at
    FROM over CROSS JOIN LATERAL (
        -- In words that only the primary key fits, and not the index of all that is due.
        SELECT event_seq, subscription_id FROM {deliveries}
        WHERE event_seq = over.event_seq AND state NOT IN ('delivered', 'dead', 'cancelled')
            AND (state NOT IN ('leased') OR due_at <= (SELECT now FROM clock))
            AND subscription_id NOT IN (SELECT id FROM {subscriptions} WHERE name LIKE '%.dead-letter')
        FOR UPDATE SKIP LOCKED
    ) d
), claimed AS (
    UPDATE {deliveries} d
    SET state = 'leased', lease_token = $1, due_at = (SELECT now FROM clock) + $2::interval, attempts = d.attempts + 1,
        updated_at = (SELECT now FROM clock)
    FROM waiting WHERE d.event_seq = waiting.event_seq AND d.subscription_id = waiting.subscription_id
    RETURNING d.event_seq, d.subscription_id, d.attempts, waiting.expires_at
), sooner AS (
    UPDATE {scheduled} s SET due_at = (SELECT now FROM clock)
    FROM over WHERE s.event_seq = over.event_seq AND s.due_at > (SELECT now FROM clock)
    RETURNING s.event_seq
), ended AS MATERIALIZED (
    SELECT over.event_seq FROM over
    WHERE over.expires_at <= (SELECT now FROM clock) - interval '1 minute'
        AND NOT EXISTS (SELECT FROM {scheduled} s WHERE s.event_seq = over.event_seq)
        AND NOT EXISTS (SELECT FROM {deliveries} d
                        WHERE d.event_seq = over.event_seq AND d.state NOT IN ('delivered', 'dead', 'cancelled'))
), gone AS (
    DELETE FROM {expiries} x USING ended WHERE x.event_seq = ended.event_seq
), again AS (
    UPDATE {expiries} x SET look_at = (SELECT now FROM clock) + interval '1 minute'
    FROM over WHERE x.event_seq = over.event_seq AND x.event_seq NOT IN (SELECT event_seq FROM ended)
)
SELECT c.event_seq, c.subscription_id, c.attempts, c.expires_at, (SELECT count(*) FROM sooner) AS due_now,
    CASE WHEN (SELECT count(*) FROM over) = {limit} THEN interval '0' ELSE (
        SELECT min(look_at) - (SELECT now FROM clock) FROM {expiries} WHERE look_at > (SELECT now FROM clock)
    ) END AS again_in
FROM unsynced LEFT JOIN claimed c ON true
