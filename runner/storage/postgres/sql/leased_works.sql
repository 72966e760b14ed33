-- What is leased under a token; only asked for when an event of it cannot be read.
SELECT position, attempts, event_seq FROM {dispatch} WHERE lease_token = $1 ORDER BY position
