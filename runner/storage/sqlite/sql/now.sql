-- The file's clock: microseconds since 1970, to the millisecond.
SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)
