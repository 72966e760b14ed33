-- Record which event a schedule has published last, and its place in the queue.
UPDATE schedules SET last_seq = ?, last_position = ? WHERE id = ?
