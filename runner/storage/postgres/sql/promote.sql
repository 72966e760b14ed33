-- Move scheduled events that have fallen due into the queue, earliest first.
WITH unsynced AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), clock AS MATERIALIZED (
    -- Asked once: where each row asks for the time, no index can tell which are due, and all are read.
    SELECT clock_timestamp() AS now
), due AS MATERIALIZED (
    SELECT event_seq FROM {scheduled} WHERE due_at <= (SELECT now FROM clock)
    ORDER BY due_at LIMIT {limit} FOR UPDATE SKIP LOCKED
), moved AS (
    DELETE FROM {scheduled} s WHERE s.event_seq = ANY (ARRAY(SELECT event_seq FROM due))
    RETURNING s.event_seq, s.due_at
), queued AS (
    INSERT INTO {dispatch} (event_seq) SELECT event_seq FROM moved ORDER BY due_at, event_seq
)
SELECT count(*) FROM moved CROSS JOIN unsynced
