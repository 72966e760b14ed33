-- From when on the rate of a subscription is as if never used.
SELECT next_at FROM paces WHERE subscription_id = ?
