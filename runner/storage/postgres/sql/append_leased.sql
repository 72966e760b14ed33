-- Record events as append.sql does, leased to the caller under $10 and $11 (lease, token).
WITH recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    {texts}
    RETURNING seq
), queued AS (
    INSERT INTO {dispatch} (event_seq, lease_until, lease_token, attempts)
    SELECT seq, statement_timestamp() + $10::interval, $11::bigint, 1 FROM recorded
    RETURNING event_seq, position
)
SELECT array_agg(event_seq) AS seqs, array_agg(position) AS positions,
       (SELECT subscriptions_version FROM {bus}) AS version, statement_timestamp() AS created_at
FROM queued
