-- What else a worker wants to know at a claim.
SELECT (SELECT subscriptions_version FROM bus WHERE one = 1), (SELECT min(due_at) FROM scheduled),
       EXISTS (SELECT 1 FROM deliveries WHERE state IN ('pending', 'leased'))
