-- Put deliveries in line, in the transaction that records them.
INSERT INTO {turns} (subscription_id, order_key, position, event_seq)
SELECT * FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bigint[])
ON CONFLICT DO NOTHING
