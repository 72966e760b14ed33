-- The end of a claim whose works were all claimed for the first time, and whose deliveries all go into runs: as `settle.sql`,
-- without what it has for others, which costs as much as the runs even where there is nothing of it.
WITH settled AS (
    DELETE FROM {dispatch} d
    USING unnest($2::bigint[], $3::bigint[]) AS stretch (first, last)
    WHERE d.position BETWEEN stretch.first AND stretch.last AND d.lease_token = $1
    RETURNING d.event_seq
), held AS MATERIALIZED (
    -- As many as there were ($6) are all of them, of which nothing is to be cut out.
    SELECT CASE WHEN (SELECT count(*) FROM settled) = $6::bigint THEN '{{(,)}}'::int8multirange
        ELSE (SELECT range_agg(int8range(event_seq, event_seq, '[]')) FROM settled) END AS seqs
), run AS MATERIALIZED (
    SELECT r.seqs::int8multirange AS seqs, r.ids::int[] AS ids FROM unnest($4::text[], $5::text[]) AS r (seqs, ids)
), plain AS (
    INSERT INTO {runs} (first, last, seqs, subscriptions, settled_at)
    SELECT lower(kept.seqs), upper(kept.seqs) - 1, kept.seqs, kept.ids, clock_timestamp()
    FROM (SELECT run.seqs * held.seqs AS seqs, run.ids FROM run CROSS JOIN held) kept
    WHERE NOT isempty(kept.seqs)
)
SELECT array_agg(event_seq) FROM settled
