-- The events of append.sql and append_leased.sql as rows. A column of texts comes as one text: the driver takes long for
-- each element of an array. All share the moment at which the statement came in.
SELECT i.id, i.source, i.type, i.subject, i.time, i.datacontenttype, i.dataschema, i.extensions::json, i.data,
       statement_timestamp()
FROM unnest(string_to_array($1, {separators}), string_to_array($2, {separators}), string_to_array($3, {separators}),
            string_to_array($4, {separators}), $5::timestamptz[], string_to_array($6, {separators}),
            string_to_array($7, {separators}), string_to_array($8, {separators}), $9::bytea[])
    AS i (id, source, type, subject, time, datacontenttype, dataschema, extensions, data)
WHERE (SELECT {patience}) <> ''  -- once, before the first row
