-- Begin to keep the pace of a subscription whose rate has never been used.
INSERT INTO {paces} (subscription_id, next_at) VALUES ($1, clock_timestamp()) ON CONFLICT DO NOTHING
