-- The data of events whose claim left it out.
SELECT seq, data FROM {events} WHERE seq = ANY ($1::bigint[])
