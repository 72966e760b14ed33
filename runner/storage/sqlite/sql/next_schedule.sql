-- When the next schedule is due.
SELECT min(next_at) FROM schedules WHERE next_at > ?
