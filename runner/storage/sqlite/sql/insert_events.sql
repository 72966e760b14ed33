-- Record events that are new; VALUES is followed by as many rows as there are.
INSERT INTO events (source, id, type, subject, time, datacontenttype, dataschema, data, extensions, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
