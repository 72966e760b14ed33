-- What the server is, and the settings of the session. In one row.
SELECT current_setting('server_version') AS version,
       current_setting('server_version_num')::int AS number,
       current_database()::text AS database,
       quote_ident(current_user) AS role,
       current_setting('server_encoding') AS encoding,
       current_setting('is_superuser')::bool OR pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_all,
       pg_is_in_recovery() AS standby,
       current_setting('transaction_read_only')::bool AS read_only,
       pg_backend_pid() AS pid,
       (SELECT jsonb_object_agg(name, current_setting(name))
        FROM unnest(ARRAY['autovacuum', 'fsync', 'full_page_writes', 'synchronous_commit', 'track_counts',
                          'zero_damaged_pages', 'search_path']) AS wanted (name))::text AS settings
