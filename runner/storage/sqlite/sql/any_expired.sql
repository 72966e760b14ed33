-- Whether an event has expired that may still have something waiting, and when the next one is to be looked at; reads only.
SELECT EXISTS (SELECT 1 FROM expiries WHERE look_at <= ?), (SELECT min(look_at) FROM expiries WHERE look_at > ?)
