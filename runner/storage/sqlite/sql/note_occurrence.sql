-- Record which event a tick has.
UPDATE occurrences SET event_seq = ? WHERE schedule_id = ? AND tick = ?
