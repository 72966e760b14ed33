"""Least privilege on PostgreSQL: what a role of the bus may do, and what a stranger's objects cannot make it do."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer

from .deployment import Deployment, started

# What fits our calls better than what PostgreSQL has. Each does its work, so that nothing but the trap tells.
_FUNCTIONS = (
    ("unnest", "a int[]", "SETOF int", "RETURN QUERY SELECT pg_catalog.unnest(a)"),
    ("unnest", "a bigint[]", "SETOF bigint", "RETURN QUERY SELECT pg_catalog.unnest(a)"),
    ("unnest", "a text[]", "SETOF text", "RETURN QUERY SELECT pg_catalog.unnest(a)"),
    ("convert_to", "a text, b text", "bytea", "RETURN pg_catalog.convert_to(a, b::name)"),
    ("quote_ident", "a name", "text", "RETURN pg_catalog.quote_ident(a::text)"),
    ("coalesced", "a text", "text", "RETURN a"),
    ("jsonb_typeof", "a json", "text", "RETURN pg_catalog.json_typeof(a)"),
    ("left", "a varchar, b int", "text", "RETURN pg_catalog.left(a::text, b)"),
    ("has_database_privilege", "a name, b text", "bool", "RETURN true"),
    ("same", "a varchar, b text", "bool", "RETURN a::text OPERATOR(pg_catalog.=) b"),
    ("same", "a varchar, b varchar", "bool", "RETURN a::text OPERATOR(pg_catalog.=) b::text"),
    ("same", "a varchar, b text[]", "bool", "RETURN a::text OPERATOR(pg_catalog.=) ANY (b)"),
    ("joined", "a text, b name", "text", "RETURN a OPERATOR(pg_catalog.||) b::text"),
    ("above", "a bigint, b numeric", "bool", "RETURN a::numeric OPERATOR(pg_catalog.>) b"),
)
_OTHERS = """
CREATE FUNCTION public.gather(a bigint[], b bigint) RETURNS bigint[] LANGUAGE plpgsql AS
    $$ BEGIN PERFORM public.trap('array_agg'); RETURN pg_catalog.array_append(a, b); END $$;
CREATE AGGREGATE public.array_agg(bigint) (SFUNC = public.gather, STYPE = bigint[]);
CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = text, FUNCTION = public.same);
CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.same);
CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = name, FUNCTION = public.joined);
CREATE OPERATOR public.> (LEFTARG = bigint, RIGHTARG = numeric, FUNCTION = public.above);
"""


def _hostile() -> str:
    statements = [
        "CREATE TABLE public.trapped (who text, what text); GRANT ALL ON public.trapped TO PUBLIC;"
        "CREATE FUNCTION public.trap(what text) RETURNS void LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.trapped VALUES (current_user, what); END $$;"
    ]
    for name, arguments, returns, body in _FUNCTIONS:
        statements.append(
            f"CREATE FUNCTION public.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS"
            f" $$ BEGIN PERFORM public.trap('{name}'); {body}; END $$;"
        )
    return "\n".join([*statements, _OTHERS])


@pytest.fixture
def role(postgres: PostgresServer, postgres_dsn: str) -> Iterator[str]:
    """A role that may log in, and owns nothing but what it makes."""
    name = f"stranger_{uuid.uuid4().hex[:8]}"
    postgres.psql(f"CREATE ROLE {name} LOGIN")
    yield name
    postgres.psql(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}", postgres_dsn)


def as_role(dsn: str, role: str) -> str:
    return dsn.replace("//postgres@", f"//{role}@")


def work(deployment: Deployment) -> None:
    """Do with a deployment whatever reaches the database: publish, deliver, fail, look, correct, forget."""
    lines = "".join(f'{{"specversion":"1.0","id":"f{n}","source":"/f","type":"a.b"}}\n' for n in range(40))
    deployment.cli("publish", "--file", "-", input=lines)
    deployment.cli("publish", "--file", "-", input=lines)  # all known
    deployment.cli("publish", "later.thing", "--id", "later", "--delay", "1h")
    with started(deployment) as process:
        deployment.cli("publish", "broken.thing", "--id", "b1")
        while not deployment.json("deliveries", "list", "--state", "dead"):
            assert process.returncode is None, process.report()
        deployment.cli("deliveries", "retry", "--state", "dead")
        deployment.cli("events", "replay", "--subscription", "everything", "--type", "a.*")
        deployment.cli("instances")
        assert process.stop() == 0
    looks = ("events list", "events show b1", "subscriptions list", "prune", "check --online")
    for verb in map(str.split, looks):
        deployment.cli(*verb)
    deployment.cli("events", "cancel", "later")


class TestStranger:
    """A role that may create in the schema of the tables, and whose objects fit our calls better than the built-in."""

    def plant(self, postgres: PostgresServer, dsn: str, role: str) -> None:
        postgres.psql(f"GRANT CREATE ON SCHEMA public TO {role}", dsn)
        postgres.psql(_hostile(), as_role(dsn, role))

    def trapped(self, postgres: PostgresServer, dsn: str) -> str:
        return postgres.psql("SELECT pg_catalog.count(*), pg_catalog.min(what) FROM public.trapped", dsn)

    def test_the_trap_works(self, postgres: PostgresServer, postgres_dsn: str, role: str) -> None:
        self.plant(postgres, postgres_dsn, role)
        postgres.psql("SELECT pg_catalog.count(*) FROM unnest(ARRAY[1, 2])", postgres_dsn)
        assert self.trapped(postgres, postgres_dsn) == "1|unnest"

    @pytest.mark.parametrize("path", ["", "?options=-csearch_path%3Dapp,public"])
    def test_no_work_of_ours_runs_its_code(
        self, postgres: PostgresServer, postgres_dsn: str, role: str, tmp_path: Path, path: str
    ) -> None:
        self.plant(postgres, postgres_dsn, role)
        deployment = Deployment(tmp_path, postgres_dsn + path)
        deployment.write()
        deployment.cli("migrate")
        work(deployment)
        assert self.trapped(postgres, postgres_dsn) == "0|"

    def test_publish_event_runs_nothing_of_it(
        self, postgres: PostgresServer, postgres_dsn: str, role: str, tmp_path: Path
    ) -> None:
        self.plant(postgres, postgres_dsn, role)
        deployment = Deployment(tmp_path, postgres_dsn)
        deployment.write()
        deployment.cli("migrate")
        postgres.psql(
            "SET search_path = public, pg_catalog; SELECT publish_event('a.b'::text, '{}'::jsonb, source => '/s',"
            """ extensions => '{"k": "v"}'::jsonb, subject => 's', deliver_at => now() + '1 hour'::interval)""",
            postgres_dsn,
        )
        assert self.trapped(postgres, postgres_dsn) == "0|"


def test_no_script_has_anything_to_say(postgres: PostgresServer, postgres_dsn: str, tmp_path: Path) -> None:
    """What `psql` prints on standard error looks like a fault to whoever pipes a script into it."""
    deployment = Deployment(tmp_path, postgres_dsn)
    deployment.write()
    schema = f"bus_{uuid.uuid4().hex[:8]}"
    deployment.path.write_text(deployment.path.read_text().replace("start_timeout: 1s", f"schema: {schema}"))
    psql = [str(postgres.programs / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", postgres_dsn]
    for script in ("--sql", "--roles", "--roles"):
        text = deployment.cli("migrate", script)[0]
        done = subprocess.run(psql, input=text, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), script
    for role in ("owner", "runner", "publisher", "looker"):
        postgres.psql(f"DROP OWNED BY {schema}_{role} CASCADE; DROP ROLE {schema}_{role}", postgres_dsn)


class TestRoles:
    """`runner migrate --roles`, run before the tables are there, and after it."""

    @pytest.fixture(params=["before", "after"])
    def bus(
        self, request: pytest.FixtureRequest, postgres: PostgresServer, postgres_dsn: str, tmp_path: Path
    ) -> Iterator[Deployment]:
        schema = f"bus_{uuid.uuid4().hex[:8]}"
        deployment = Deployment(tmp_path, f"{as_role(postgres_dsn, f'{schema}_runner')}")
        deployment.write()
        text = deployment.path.read_text()
        owner = as_role(postgres_dsn, f"{schema}_owner") if request.param == "before" else postgres_dsn
        settings = f"schema: {schema}, migrate: false, start_timeout: 1s"
        deployment.path.write_text(text.replace("start_timeout: 1s", settings))
        script = deployment.cli("migrate", "--roles")[0]
        migrating = Deployment(tmp_path / "owner", owner)
        migrating.directory.mkdir()
        migrating.write()
        migrating.path.write_text(migrating.path.read_text().replace("start_timeout: 1s", settings))
        for step in ("roles", "tables") if request.param == "before" else ("tables", "roles", "roles"):
            if step == "roles":
                postgres.psql(script, postgres_dsn)
            else:
                migrating.cli("migrate")
        yield deployment
        for role in ("owner", "runner", "publisher", "looker"):
            postgres.psql(f"DROP OWNED BY {schema}_{role} CASCADE; DROP ROLE {schema}_{role}", postgres_dsn)

    def schema(self, bus: Deployment) -> str:
        return bus.dsn.split("//")[1].partition("@")[0].removesuffix("_runner")

    def test_the_runner_works_and_makes_nothing(self, postgres: PostgresServer, bus: Deployment) -> None:
        work(bus)
        schema = self.schema(bus)
        for statement in (
            f"CREATE TABLE {schema}.mine (one int)",
            f"ALTER TABLE {schema}.events ADD COLUMN mine int",
            f"DROP TABLE {schema}.events",
            f"UPDATE {schema}.alembic_version SET version_num = '9'",
            f"TRUNCATE {schema}.events",
        ):
            with pytest.raises(RuntimeError, match=r"permission denied|must be owner"):
                postgres.psql(statement, bus.dsn)

    def test_a_publisher_may_publish_and_nothing_else(self, postgres: PostgresServer, bus: Deployment) -> None:
        schema = self.schema(bus)
        dsn = bus.dsn.replace("_runner@", "_publisher@")
        seq = postgres.psql(f"""SELECT {schema}.publish_event('order.created', '{{"n": 1}}', '/shop')""", dsn)
        [event] = bus.json("events", "list")
        assert (str(event["seq"]), event["event"]["type"]) == (seq, "order.created")
        for table in ("events", "dispatch", "scheduled", "deliveries", "subscriptions", "bus", "alembic_version"):
            for statement in (f"SELECT * FROM {schema}.{table}", f"DELETE FROM {schema}.{table}"):
                with pytest.raises(RuntimeError, match="permission denied"):
                    postgres.psql(statement, dsn)
        with pytest.raises(RuntimeError, match="permission denied"):
            postgres.psql(f"INSERT INTO {schema}.dispatch (event_seq) VALUES (1)", dsn)

    def test_a_looker_reads_and_writes_nothing(self, postgres: PostgresServer, bus: Deployment) -> None:
        schema = self.schema(bus)
        dsn = bus.dsn.replace("_runner@", "_looker@")
        assert postgres.psql(f"SELECT count(*) FROM {schema}.events", dsn) == "0"
        for statement in (f"DELETE FROM {schema}.events", f"UPDATE {schema}.bus SET channel = ''"):
            with pytest.raises(RuntimeError, match="permission denied"):
                postgres.psql(statement, dsn)


def test_roles_of_tables_without_a_schema_of_their_own_find_them_in_public(
    postgres: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    """Their search path names no schema of ours."""
    deployment = Deployment(tmp_path, as_role(postgres_dsn, "bus_runner"))
    deployment.write()
    text = deployment.path.read_text()
    try:
        postgres.psql(deployment.cli("migrate", "--roles")[0], postgres_dsn)
        deployment.path.write_text(text.replace("bus_runner", "bus_owner"))
        deployment.cli("migrate")
        deployment.path.write_text(text.replace("start_timeout: 1s", "migrate: false, start_timeout: 1s"))
        work(deployment)
        assert postgres.psql("SELECT count(*) > 0 FROM public.events", postgres_dsn) == "t"
    finally:
        for role in ("owner", "runner", "publisher", "looker"):
            postgres.psql(f"DROP OWNED BY bus_{role} CASCADE; DROP ROLE bus_{role}", postgres_dsn)


def test_who_could_publish_by_function_before_still_can(
    postgres: PostgresServer, postgres_dsn: str, role: str, tmp_path: Path
) -> None:
    deployment = Deployment(tmp_path, postgres_dsn)
    deployment.write()
    deployment.cli("migrate")
    postgres.psql(
        f"ALTER TABLE instances DROP COLUMN strategies, DROP COLUMN holder, DROP COLUMN configuration;"
        f"ALTER TABLE subscriptions DROP COLUMN paused_at, DROP COLUMN paused_by;"
        f"DROP VIEW delivery_states; DROP TABLE expiries, throughput, runs, audit;"
        f"DROP INDEX events_correlation, schedules_next_at;"
        f"ALTER TABLE schedules DROP COLUMN revision,"
        f" DROP COLUMN tick, DROP COLUMN last_tick, DROP COLUMN last_seq,"
        f" DROP COLUMN last_position, DROP COLUMN queued_until,"
        f" DROP COLUMN missed, DROP COLUMN skipped, DROP COLUMN paused_at, DROP COLUMN paused_by;"
        f"UPDATE alembic_version SET version_num = '0002'; GRANT EXECUTE ON FUNCTION publish_event TO PUBLIC;"
        f"GRANT INSERT, SELECT, UPDATE ON events TO {role}",
        postgres_dsn,
    )
    assert deployment.cli("migrate")[0] == "applied 0003, 0004, 0005, 0006, 0007, 0008, 0010, 0012, 0013, 0015, 0018\n"
    publish = "SELECT publish_event('a.b', source => '/s')"
    assert postgres.psql(publish, as_role(postgres_dsn, role)) == "1"
    postgres.psql(f"REVOKE EXECUTE ON FUNCTION publish_event FROM {role}", postgres_dsn)
    with pytest.raises(RuntimeError, match="permission denied for function publish_event"):
        postgres.psql(publish, as_role(postgres_dsn, role))


def test_tables_are_found_where_they_are(postgres: PostgresServer, postgres_dsn: str, tmp_path: Path) -> None:
    """What a role's search path says means what it meant, also once a schema stands before the one with the tables."""
    deployment = Deployment(tmp_path, postgres_dsn + "?options=-csearch_path%3Dapp,public")
    deployment.write()
    deployment.cli("migrate")
    assert postgres.psql("SELECT count(*) FROM public.events", postgres_dsn) == "0"
    postgres.psql("CREATE SCHEMA app", postgres_dsn)
    assert deployment.json("migrate", "--status")[0]["pending"] == []
    nowhere = Deployment(tmp_path, postgres_dsn + "?options=-csearch_path%3Dnowhere")
    nowhere.write()
    _, complaint = nowhere.cli("migrate", code=1)
    assert "set storage.schema" in complaint
