-- The common end of a claim: every delivery of it succeeded at once. The works stand in stretches of positions without a
-- gap, mostly one. What they were delivered to is recorded in runs (see `runs.py`), a few rows for all, as far as the works
-- were still held: seqs of a run that were not are cut out of it. What an earlier attempt of the dispatch may have delivered
-- is recorded row by row, and so are groups ($6, $7) too small for a run, unless somebody acknowledged one before.
WITH settled AS (
    DELETE FROM {dispatch} d
    USING unnest($2::bigint[], $3::bigint[]) AS stretch (first, last)
    WHERE d.position BETWEEN stretch.first AND stretch.last AND d.lease_token = $1
    RETURNING d.event_seq, d.attempts
), held AS MATERIALIZED (
    SELECT range_agg(int8range(event_seq, event_seq, '[]')) AS seqs FROM settled WHERE attempts = 1
), run AS MATERIALIZED (
    SELECT r.seqs::int8multirange AS seqs, r.ids::int[] AS ids FROM unnest($4::text[], $5::text[]) AS r (seqs, ids)
), plain AS (
    INSERT INTO {runs} (first, last, seqs, subscriptions, settled_at)
    SELECT lower(kept.seqs), upper(kept.seqs) - 1, kept.seqs, kept.ids, clock_timestamp()
    FROM (SELECT run.seqs * held.seqs AS seqs, run.ids FROM run CROSS JOIN held) kept
    WHERE NOT isempty(kept.seqs)
), alone AS (
    INSERT INTO {deliveries} (event_seq, subscription_id, state, attempts, updated_at)
    SELECT s.event_seq, unnest(run.ids), 'delivered', s.attempts, clock_timestamp()
    FROM settled s JOIN run ON run.seqs @> s.event_seq
    WHERE s.attempts <> 1
    UNION ALL
    SELECT s.event_seq, few.id, 'delivered', s.attempts, clock_timestamp()
    FROM settled s JOIN unnest($6::bigint[], $7::int[]) AS few (seq, id) ON few.seq = s.event_seq
    ON CONFLICT DO NOTHING
)
-- One row of answer: an array is decoded in a tenth of the time that its rows would take.
SELECT array_agg(event_seq) FROM settled
