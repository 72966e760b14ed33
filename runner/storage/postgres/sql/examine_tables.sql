-- $1 schema, $2 tables.
SELECT c.relname::text AS name,
       greatest(coalesce(s.n_live_tup, 0), 0) AS live,
       greatest(coalesce(s.n_dead_tup, 0), 0) AS dead,
       pg_total_relation_size(c.oid) AS size,
       coalesce((SELECT option.option_value::bool FROM pg_options_to_table(c.reloptions) AS option
                 WHERE option.option_name = 'autovacuum_enabled'), true) AS autovacuum
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND c.relkind = 'r'
ORDER BY c.relname
