-- How many rows of work in these positions are still held under the token, and the most attempts of any.
SELECT count(*), max(attempts) FROM dispatch WHERE position BETWEEN ? AND ? AND lease_token = ?
