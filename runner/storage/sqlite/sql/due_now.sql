-- Have a scheduled event be due now.
UPDATE scheduled SET due_at = ? WHERE event_seq = ? AND due_at > ?
