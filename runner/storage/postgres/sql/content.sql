-- Find out whether the event recorded under (source, id) has the given content.
SELECT e.seq, ROW(e.type, e.subject, e.time, e.datacontenttype, e.dataschema, {recorded_extensions}, e.data)
    IS NOT DISTINCT FROM ROW($3::text, $4::text, $5::timestamptz, $6::text, $7::text, {given_extensions}, $9::bytea) AS same
FROM {events} e WHERE e.source = $1 AND e.id = $2
