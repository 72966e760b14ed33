-- Charge what was claimed.
INSERT INTO paces (subscription_id, next_at) VALUES (?, ?)
ON CONFLICT (subscription_id) DO UPDATE SET next_at = excluded.next_at
