-- What a row of work says by itself.
SELECT attempts, event_seq FROM dispatch WHERE position = ?
