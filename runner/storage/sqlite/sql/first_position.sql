-- Where the queue begins.
SELECT min(position) FROM dispatch
