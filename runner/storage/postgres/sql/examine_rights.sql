-- $1 schema (null: the visible one), $2 tables. The rights on them that the role lacks.
SELECT wanted.privilege || ' on ' || c.relname AS lacking
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS wanted (privilege, place)
WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND c.relkind IN ('r', 'p')
      AND NOT has_table_privilege(c.oid, wanted.privilege)
ORDER BY c.relname, wanted.place
