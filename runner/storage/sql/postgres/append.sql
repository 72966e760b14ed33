-- Record events that are due at once and new. One statement is one transaction. A (source, id) that is known fails all of
-- it: append_each.sql knows what to do. Rows are numbered in the order in which they are given, so that the array of seqs
-- says all; they share the moment at which the statement came in.
-- A column of texts comes as one text: the driver takes long for each element of an array.
WITH recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    SELECT i.id, i.source, i.type, i.subject, i.time, i.datacontenttype, i.dataschema, i.extensions::json, i.data,
           statement_timestamp()
    FROM unnest(string_to_array($1, {separators}), string_to_array($2, {separators}), string_to_array($3, {separators}),
                string_to_array($4, {separators}), $5::timestamptz[], string_to_array($6, {separators}),
                string_to_array($7, {separators}), string_to_array($8, {separators}), $9::bytea[])
        AS i (id, source, type, subject, time, datacontenttype, dataschema, extensions, data)
    RETURNING seq
), queued AS (
    INSERT INTO {dispatch} (event_seq) SELECT seq FROM recorded
)
SELECT array_agg(seq) AS seqs FROM recorded
