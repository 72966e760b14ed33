-- Take a delivery that has ended out of its line.
DELETE FROM turns WHERE event_seq = ? AND subscription_id = ?
