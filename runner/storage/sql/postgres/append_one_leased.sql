-- Record one event, leased to the caller under $10 and $11 (lease, token).
WITH recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::json, $9, clock_timestamp())
    RETURNING seq, created_at
)
INSERT INTO {dispatch} (event_seq, lease_until, lease_token, attempts)
SELECT seq, created_at + $10::interval, $11::bigint, 1 FROM recorded
RETURNING event_seq, position, (SELECT subscriptions_version FROM {bus}) AS version,
          (SELECT created_at FROM recorded) AS created_at
