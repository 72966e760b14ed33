"""`publish_event` for roles that have no right on the tables."""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"

# Until now a caller of the function needed the right to insert events: a role that has it may go on to call it. Every
# other one has to be allowed to.
_RIGHTS = """
REVOKE ALL ON FUNCTION {schema}publish_event FROM PUBLIC;
DO $do$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) acl
        WHERE c.oid = '{schema}events'::regclass AND acl.privilege_type = 'INSERT' AND acl.grantee <> c.relowner
    LOOP
        EXECUTE 'GRANT EXECUTE ON FUNCTION {schema}publish_event TO ' || grantee;
    END LOOP;
    -- Of which version the tables are is for their owner to write, whatever rights new tables come with.
    FOR grantee IN
        SELECT DISTINCT CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END
        FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) acl
        WHERE c.oid = '{schema}alembic_version'::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE 'REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {schema}alembic_version FROM ' || grantee;
    END LOOP;
END
$do$
"""


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        _run(Path(__file__).with_name("0003_publish_event.sql").read_text(encoding="utf-8"))
        for statement in _RIGHTS.split(";\n", 1):
            _run(statement)


def downgrade() -> None:
    """Take the rights back; the function stays, and does all that the one before did."""
    if op.get_context().dialect.name == "postgresql":
        _run("ALTER FUNCTION {schema}publish_event SECURITY INVOKER")
        _run("GRANT EXECUTE ON FUNCTION {schema}publish_event TO PUBLIC")


def _run(statement: str) -> None:
    """Run a statement, `{schema}` in it replaced."""
    schema: str | None = op.get_context().opts["version_table_schema"]
    if schema is not None:
        op.execute(statement.replace("{schema}", '"' + schema.replace('"', '""') + '".'))
    else:  # a script for the schema that it finds
        op.execute(
            f"DO $run$ BEGIN EXECUTE replace($statement${statement}$statement$, "
            "'{schema}', concat('\"', replace(current_schema(), '\"', '\"\"'), '\".')); END $run$"
        )
