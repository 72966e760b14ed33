-- Delete what is older than a tick may be late.
DELETE FROM occurrences WHERE schedule_id = ? AND tick < ?
