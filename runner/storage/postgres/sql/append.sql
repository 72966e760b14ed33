-- Record events that are due at once and new. One statement is one transaction. A (source, id) that is known fails all of
-- it: append_each.sql knows what to do. Rows are numbered in the order in which they are given, so that the array of seqs
-- says all.
WITH recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    {texts}
    RETURNING seq
), queued AS (
    INSERT INTO {dispatch} (event_seq) SELECT seq FROM recorded
)
SELECT array_agg(seq) AS seqs FROM recorded
