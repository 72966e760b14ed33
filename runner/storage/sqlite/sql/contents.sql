-- The data of events whose claim left it out.
SELECT seq, data FROM events WHERE seq IN (SELECT value FROM json_each(?))
