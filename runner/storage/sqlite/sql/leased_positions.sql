-- The positions that are leased under the token, among these.
SELECT position FROM dispatch WHERE position BETWEEN ? AND ? AND lease_token = ? ORDER BY position
