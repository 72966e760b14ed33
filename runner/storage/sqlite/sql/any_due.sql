-- Whether a claim would find anything; reads only.
SELECT 1 FROM dispatch WHERE lease_until IS NULL OR lease_until <= ? LIMIT 1
