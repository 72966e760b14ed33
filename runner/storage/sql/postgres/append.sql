-- Record events that are due at once, leased to the caller where $11 and $12 (lease, token) are given.
-- One statement is one transaction.
-- A known (source, id) with the same content is written again, so that the acknowledgement waits for the
-- same durability as the first one's; with other content it is left out, the counts differ, and the
-- division undoes everything.
-- The answer is one row: the array of seqs says all where every event is new, because rows are numbered in
-- the order in which they are given.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), recorded AS (
    INSERT INTO {events} AS e
        (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    SELECT i.id, i.source, i.type, i.subject, i.time, i.datacontenttype, i.dataschema, i.extensions::json, i.data,
           (SELECT now FROM clock)
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                $9::bytea[])
        AS i (id, source, type, subject, time, datacontenttype, dataschema, extensions, data)
    ON CONFLICT (source, id) DO UPDATE SET source = excluded.source
        WHERE {same_content}
    RETURNING e.seq, e.source, e.id, e.xmax = 0 AS fresh
), queued AS (
    INSERT INTO {dispatch} (event_seq, lease_until, lease_token, attempts)
    SELECT seq, clock_timestamp() + $11::interval, $12::bigint, ($12::bigint IS NOT NULL)::int
    FROM recorded WHERE fresh ORDER BY seq
    RETURNING position
)
SELECT array_agg(seq) AS seqs,
       CASE WHEN NOT bool_and(fresh) THEN (SELECT array_agg(fresh) FROM recorded) END AS fresh,
       CASE WHEN NOT bool_and(fresh) THEN (SELECT array_agg(source) FROM recorded) END AS sources,
       CASE WHEN NOT bool_and(fresh) THEN (SELECT array_agg(id) FROM recorded) END AS ids,
       CASE WHEN $12::bigint IS NOT NULL THEN (SELECT array_agg(position) FROM queued) END AS positions,
       CASE WHEN $12::bigint IS NOT NULL THEN (SELECT subscriptions_version FROM {bus}) END AS version,
       (SELECT now FROM clock) AS created_at,
       1 / (count(*) = $10)::int AS complete
FROM recorded
