-- Record a few events as append_few.sql does, leased to the caller; the lease and the token follow the events.
WITH recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    VALUES {rows}
    RETURNING seq
)
INSERT INTO {dispatch} (event_seq, lease_until, lease_token, attempts)
SELECT seq, statement_timestamp() + {lease}, {token}, 1 FROM recorded
RETURNING event_seq, position, (SELECT subscriptions_version FROM {bus}) AS version, statement_timestamp() AS created_at
