-- Record a few events as append.sql does, each value a parameter of its own: arrays of so few cost more than all the rest.
-- They share the moment at which the statement came in.
WITH recorded AS (
    INSERT INTO {events} (id, source, type, subject, time, datacontenttype, dataschema, extensions, data, created_at)
    VALUES {rows}
    RETURNING seq
)
INSERT INTO {dispatch} (event_seq) SELECT seq FROM recorded RETURNING event_seq
