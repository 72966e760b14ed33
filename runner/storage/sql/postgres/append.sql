-- Record events that are due at once and new, leased to the caller where $10 and $11 (lease, token) are given.
-- One statement is one transaction. A (source, id) that is known fails all of it: append_each.sql knows what to do.
-- Rows are numbered in the order in which they are given, so that the array of seqs says all.
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now
), recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    SELECT i.id, i.source, i.type, i.subject, i.time, i.datacontenttype, i.dataschema, i.extensions::json, i.data,
           (SELECT now FROM clock)
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                $9::bytea[])
        AS i (id, source, type, subject, time, datacontenttype, dataschema, extensions, data)
    RETURNING seq
), queued AS (
    INSERT INTO {dispatch} (event_seq, lease_until, lease_token, attempts)
    SELECT seq, clock_timestamp() + $10::interval, $11::bigint, ($11::bigint IS NOT NULL)::int FROM recorded ORDER BY seq
    RETURNING position
)
SELECT array_agg(seq) AS seqs,
       CASE WHEN $11::bigint IS NOT NULL THEN (SELECT array_agg(position) FROM queued) END AS positions,
       CASE WHEN $11::bigint IS NOT NULL THEN (SELECT subscriptions_version FROM {bus}) END AS version,
       (SELECT now FROM clock) AS created_at
FROM recorded
