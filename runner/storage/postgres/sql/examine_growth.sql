-- $1 schema, $2 tables.
SELECT (SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND c.relkind = 'r') AS size,
       (SELECT created_at FROM {events} ORDER BY seq LIMIT 1) AS since,
       clock_timestamp() AS now,
       CASE WHEN current_setting('is_superuser')::bool OR pg_has_role(current_user, 'pg_read_all_settings', 'USAGE')
            THEN current_setting('data_directory') END AS directory
