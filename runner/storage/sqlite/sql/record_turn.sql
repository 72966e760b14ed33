-- Put one delivery in line, in the transaction that records it.
INSERT INTO turns (subscription_id, order_key, position, event_seq) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING
