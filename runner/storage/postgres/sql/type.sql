-- What is left of an event that cannot be read.
SELECT type FROM {events} WHERE seq = $1
