-- Give back what a claim has just leased behind a position.
UPDATE dispatch SET lease_until = NULL, lease_token = NULL, attempts = attempts - 1 WHERE position > ? AND lease_token = ?
