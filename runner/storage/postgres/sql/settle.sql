-- The common end of a claim: every delivery of it succeeded at once. A run is works that stand next
-- to each other and went to the same subscriptions, whose ids are the slice [from_id, to_id] of $6. So nothing is sent, and
-- no join depends on an estimate, for each work. The slice is unnested in the list of what is selected: as a table of
-- its own it would be computed anew for each work.
WITH settled AS (
    DELETE FROM {dispatch} d
    USING unnest($2::bigint[], $3::bigint[], $4::int[], $5::int[]) AS run (first, last, from_id, to_id)
    WHERE d.position BETWEEN run.first AND run.last AND d.lease_token = $1
    RETURNING d.event_seq, d.attempts, run.from_id, run.to_id
), delivered AS (
    INSERT INTO {deliveries} (event_seq, subscription_id, state, attempts, updated_at)
    SELECT s.event_seq, unnest(($6::int[])[s.from_id:s.to_id]), 'delivered', s.attempts, clock_timestamp()
    FROM settled s
)
-- One row of answer: an array is decoded in a tenth of the time that its rows would take.
SELECT array_agg(event_seq) FROM settled
