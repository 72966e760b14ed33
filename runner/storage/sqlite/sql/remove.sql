-- Remove the rows of work that are still held under the token.
DELETE FROM dispatch WHERE position IN (SELECT value FROM json_each(?)) AND lease_token = ?
RETURNING event_seq, attempts
