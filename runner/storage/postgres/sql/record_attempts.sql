-- Record attempts in the transaction that records their deliveries.
INSERT INTO {attempts} (event_seq, subscription_id, number, at, duration_us, status, error, excerpt)
SELECT a.event_seq, a.subscription_id, a.number, clock_timestamp(), a.duration_us, a.status, a.error, a.excerpt
FROM unnest($1::bigint[], $2::int[], $3::int[], $4::bigint[], $5::int[], $6::text[], $7::text[])
    AS a (event_seq, subscription_id, number, duration_us, status, error, excerpt)
