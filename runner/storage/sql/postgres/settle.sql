-- The common end of a claim: every delivery of it succeeded at once. $5 holds the subscription ids of all
-- works one after the other, and each work names its slice, so that no join depends on an estimate.
WITH settled AS (
    DELETE FROM {dispatch} d
    USING unnest($2::bigint[], $3::int[], $4::int[]) AS w (position, first, last)
    WHERE d.position = w.position AND d.lease_token = $1
    RETURNING d.event_seq, d.attempts, w.first, w.last
), delivered AS (
    INSERT INTO {deliveries} (event_seq, subscription_id, state, attempts, updated_at)
    SELECT s.event_seq, id, 'delivered', s.attempts, clock_timestamp()
    FROM settled s CROSS JOIN LATERAL unnest(($5::int[])[s.first:s.last]) AS id
)
SELECT event_seq FROM settled
