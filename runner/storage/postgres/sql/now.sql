-- The clock of the store.
SELECT clock_timestamp()
