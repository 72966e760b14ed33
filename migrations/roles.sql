-- Four roles for one bus. Run it as a superuser, or as a role that may create roles and owns the schema and the tables; as
-- often as you like, before the first `runner migrate` or after it. None has a password yet: \password gives it one.
--   {owner}: runs `runner migrate`, and owns the tables.
--   {runner}: runs `runner start`, with storage.migrate: false, and all other verbs. No DDL.
--   {publisher}: calls publish_event, and may do nothing else.
--   {looker}: runs the verbs that only look, and queries of your own.
BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning; -- nobody needs to hear that the schema is there already
DO $do$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY[{owner_text}, {runner_text}, {publisher_text}, {looker_text}] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', name);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), name);
        -- Where a pooler takes no settings of a connection, these hold all the same.
        EXECUTE format('ALTER ROLE %I IN DATABASE %I SET search_path = pg_catalog, pg_temp', name, current_database());
        EXECUTE format(
            'ALTER ROLE %I IN DATABASE %I SET default_transaction_isolation = %L', name, current_database(), 'read committed');
    END LOOP;
END
$do$;

CREATE SCHEMA IF NOT EXISTS {schema};
REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA {schema} TO {owner};
GRANT USAGE ON SCHEMA {schema} TO {runner}, {publisher}, {looker};

-- What a migration makes from now on.
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {runner};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT SELECT ON TABLES TO {looker};
ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT EXECUTE ON FUNCTIONS TO {publisher};

-- What is there already.
DO $do$
DECLARE
    found regclass;
    publish regprocedure;
BEGIN
    FOR found IN
        SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = {schema_text} AND c.relkind IN ('r', 'v') AND c.relname IN ({tables})
    LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO %I', found, {owner_text});
        EXECUTE format('GRANT SELECT ON %s TO %I', found, {looker_text});
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %I', found, {runner_text});
    END LOOP;
    FOR publish IN
        SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname = {schema_text} AND p.proname = 'publish_event'
    LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO %I', publish, {owner_text});
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', publish);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', publish, {publisher_text});
    END LOOP;
END
$do$;
-- Neither role needs to write which version the tables are of.
DO $do$
BEGIN
    IF to_regclass({version_text}) IS NOT NULL THEN
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE ON %s FROM %I', to_regclass({version_text}), {runner_text});
    END IF;
END
$do$;
COMMIT;
