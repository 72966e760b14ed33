-- Transactions, prepared transactions and replication slots that keep dead rows or old WAL, the oldest first.
SELECT 'session' AS kind,
       pid::text || coalesce(' (' || nullif(application_name, '') || ')', '') AS name,
       coalesce(state, '') AS state,
       clock_timestamp() - xact_start AS age,
       greatest(age(backend_xmin), age(backend_xid)) AS xids,
       NULL::bigint AS wal
FROM pg_stat_activity
WHERE xact_start IS NOT NULL AND pid <> pg_backend_pid() AND coalesce(backend_xmin, backend_xid) IS NOT NULL
      AND (datname = current_database() AND backend_type = 'client backend' OR backend_type = 'walsender')
UNION ALL
SELECT 'prepared', gid, '', clock_timestamp() - prepared, age(transaction), NULL
FROM pg_prepared_xacts WHERE database = current_database()
UNION ALL
SELECT 'slot', slot_name::text, CASE WHEN active THEN 'active' ELSE 'inactive' END, NULL,
       greatest(age(xmin), age(catalog_xmin)),
       CASE WHEN NOT pg_is_in_recovery() THEN pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint END
FROM pg_replication_slots
ORDER BY 4 DESC NULLS LAST
