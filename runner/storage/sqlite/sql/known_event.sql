-- What is recorded under an identity.
SELECT seq, type, subject, time, datacontenttype, dataschema, data, extensions
FROM events WHERE source = ? AND id = ?
