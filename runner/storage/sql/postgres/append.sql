-- Record events that are due at once, leased to the caller where $11 and $12 (lease, token) are given.
-- One statement is one transaction.
-- A known (source, id) with the same content is written again, so that the acknowledgement waits for the
-- same durability as the first one's; with other content it is left out, the counts differ, and the
-- division undoes everything.
WITH recorded AS (
    INSERT INTO {events} AS e
        (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    SELECT i.id, i.source, i.type, i.subject, i.time, i.datacontenttype, i.dataschema, i.extensions::json, i.data,
           clock_timestamp()
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[], $8::text[],
                $9::bytea[])
        AS i (id, source, type, subject, time, datacontenttype, dataschema, extensions, data)
    ON CONFLICT (source, id) DO UPDATE SET source = excluded.source
        WHERE {same_content}
    RETURNING e.seq, e.source, e.id, e.xmax = 0 AS fresh, e.created_at
), queued AS (
    INSERT INTO {dispatch} (event_seq, lease_until, lease_token, attempts)
    SELECT seq, clock_timestamp() + $11::interval, $12::bigint, ($12::bigint IS NOT NULL)::int
    FROM recorded WHERE fresh ORDER BY seq
    RETURNING event_seq, position
)
SELECT seq, source, id, fresh, created_at, 1 / ((SELECT count(*) FROM recorded) = $10)::int AS complete
FROM recorded
UNION ALL
-- What was leased, by seq, with the version of the subscriptions in place of `complete`.
SELECT event_seq, NULL, NULL, NULL, NULL, position FROM queued WHERE $12::bigint IS NOT NULL
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, subscriptions_version FROM {bus} WHERE $12::bigint IS NOT NULL
