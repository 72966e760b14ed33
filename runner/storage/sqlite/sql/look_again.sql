-- Look at an expired event once more.
UPDATE expiries SET look_at = ? WHERE event_seq = ?
