-- Record one event, unless its identity is known.
INSERT INTO events (source, id, type, subject, time, datacontenttype, dataschema, data, extensions, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (source, id) DO NOTHING
