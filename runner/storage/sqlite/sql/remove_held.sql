-- Remove the rows of work in these positions that are still held under the token.
DELETE FROM dispatch WHERE position BETWEEN ? AND ? AND lease_token = ?
