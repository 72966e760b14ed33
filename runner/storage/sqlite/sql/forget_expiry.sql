-- Forget when an event expired, once nothing of it can be left: not before, for a dispatch may be about to write some.
DELETE FROM expiries WHERE event_seq = ? AND expires_at <= ?
    AND NOT EXISTS (SELECT 1 FROM scheduled WHERE scheduled.event_seq = expiries.event_seq)
    AND NOT EXISTS (SELECT 1 FROM deliveries
                    WHERE deliveries.event_seq = expiries.event_seq AND state IN ('pending', 'leased'))
