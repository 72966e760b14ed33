-- Write what follows a tick, unless somebody else was first.
UPDATE schedules SET tick = ?, next_at = ?, last_tick = coalesce(?, last_tick), queued_until = ?, missed = missed + ?,
    skipped = skipped + ?
WHERE id = ? AND revision = ? AND tick = ? AND next_at <= ?
