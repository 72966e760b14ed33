-- The version of the set, and the active subscriptions: one row of nulls where there is none.
SELECT b.subscriptions_version, s.id, s.name, s.spec, s.origin, s.paused,
       s.breaker_until, s.breaker_trips, s.paused_at, s.paused_by
FROM bus b LEFT JOIN subscriptions s ON s.active
ORDER BY s.id
