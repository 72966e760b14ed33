from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from runner.config.dsn import Dsn
from runner.errors import SchemaMismatch, StorageError, StorageUnavailable
from runner.storage.home import home_of
from runner.storage.migrate import HEAD, MigrationStatus, migrate, offline_sql, scripts, status
from runner.storage.postgres import connector
from runner.storage.tables import deliveries, events, metadata
from tests.support.engines import open_engine
from tests.support.eventually import eventually
from tests.support.postgres import PostgresServer

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0010", "0012", "0013", "0015", "0018")


def engine_of(dsn: str, schema: str | None = None) -> AsyncEngine:
    return open_engine(Dsn.parse(dsn, base=Path.cwd()), schema=schema, pool=5)


def run_alembic(connection: Connection, verb: Callable[[Config, str], None], revision: str, schema: str | None) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    config.attributes.update(schema=schema, connection=connection)
    verb(config, revision)


def prefix_of(engine: AsyncEngine, schema: str | None) -> str:
    return "" if engine.dialect.name == "sqlite" else f'"{schema or "public"}".'


@pytest.fixture(params=["sqlite", "postgresql", "postgresql in a schema"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str | None]:
    """The DSN of an empty database, and the schema for the tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/runner.db", None
    dsn: str = request.getfixturevalue("postgres_dsn")
    return dsn, "the Bus" if request.param.endswith("schema") else None


@pytest.fixture
async def engine(store: tuple[str, str | None]) -> AsyncIterator[AsyncEngine]:
    engine = engine_of(*store)
    yield engine
    await engine.dispose()


@pytest.fixture
def schema(store: tuple[str, str | None]) -> str | None:
    return store[1]


async def test_migrates_once_and_says_what_it_did(engine: AsyncEngine, schema: str | None) -> None:
    assert await status(engine) == MigrationStatus(None, HEAD, REVISIONS)
    assert await migrate(engine) == list(REVISIONS)
    assert await status(engine) == MigrationStatus(HEAD, HEAD, ())
    assert await migrate(engine) == []


async def test_the_row_of_the_bus_is_there(engine: AsyncEngine, schema: str | None) -> None:
    await migrate(engine)
    async with engine.connect() as connection:
        rows = (await connection.execute(metadata.tables["bus"].select())).mappings().all()
    assert [{**row, "created_at": None} for row in rows] == [
        {"one": 1, "deployment_id": None, "subscriptions_version": 0, "channel": None, "created_at": None}
    ]


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
async def test_alembic_sees_no_difference_to_the_tables(engine: AsyncEngine, schema: str | None) -> None:
    await migrate(engine)
    schema = home_of(engine).schema
    expected = MetaData()
    for each in metadata.sorted_tables:
        each.to_metadata(expected, schema=schema)  # type: ignore[arg-type]  # None is the schema of the table itself

    def differences(connection: Connection) -> list[object]:
        options = {
            "compare_type": True,
            "compare_server_default": connection.dialect.name == "postgresql",  # it takes AUTOINCREMENT for a default
            "include_schemas": schema is not None,
            "include_name": lambda name, kind, parents: kind != "schema" or name == schema,
            # It reads no expressions in an index; the tests below compare what the databases say of them.
            "include_object": lambda of, name, kind, *_: kind != "index" or name != "events_correlation",
            "version_table_schema": schema,
        }
        found: list[object] = compare_metadata(MigrationContext.configure(connection, opts=options), expected)
        return found

    async with engine.connect() as connection:
        connection = await connection.execution_options(schema_translate_map=None)
        assert await connection.run_sync(differences) == []


async def test_sqlite_has_the_very_statements_of_the_tables(tmp_path: Path) -> None:
    migrated, created = (engine_of(f"sqlite:///{tmp_path}/{name}.db") for name in ("migrated", "created"))
    await migrate(migrated)
    async with created.begin() as connection:
        await connection.run_sync(metadata.create_all)
    query = text(
        "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE '%alembic_version%' AND type <> 'view' ORDER BY name"
    )
    found = []
    for each in (migrated, created):
        async with each.connect() as connection:
            found.append([(name, " ".join((sql or "").split())) for name, sql in await connection.execute(query)])
        await each.dispose()
    assert found[0] == found[1]
    assert "deliveries_due" in dict(found[0])


_CATALOGUE = """
    SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod) || a.attnotnull || a.attidentity::text
        || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = quote_ident(current_schema())::regnamespace
        AND c.relkind = 'r' AND c.relname <> 'alembic_version'
    UNION ALL
    SELECT 'storage', relname, '', reloptions::text FROM pg_class
    WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
    UNION ALL
    SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = quote_ident(current_schema())::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    UNION ALL
    SELECT 'index', tablename, indexname, replace(indexdef, schemaname, '') FROM pg_indexes
    WHERE schemaname = current_schema() AND tablename <> 'alembic_version'
    ORDER BY 1, 2, 3
"""


async def test_postgres_catalogue_is_that_of_the_tables(postgres: PostgresServer, postgres_dsn: str) -> None:
    engine = engine_of(postgres_dsn, "migrated")
    await migrate(engine)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE SCHEMA created"))
        connection = await connection.execution_options(schema_translate_map={None: "created"})
        await connection.run_sync(metadata.create_all)
    await engine.dispose()
    migrated, created = (
        postgres.psql(f"SET search_path TO {name}; {_CATALOGUE}", postgres_dsn) for name in ("migrated", "created")
    )
    assert migrated == created
    assert "fillfactor=50" in migrated
    assert "WHERE ((state)::text = 'dead'::text)" in migrated


async def test_many_at_once_migrate_once(store: tuple[str, str | None]) -> None:
    engines = [engine_of(*store) for _ in range(4)]
    results = await asyncio.gather(*(migrate(engine) for engine in engines))
    assert sorted(results) == [[], [], [], list(REVISIONS)]
    for engine in engines:
        await engine.dispose()


_MIGRATE = """
import asyncio, sys
from pathlib import Path
from runner.config.dsn import Dsn
from runner.errors import StorageUnavailable
from tests.support.engines import open_engine
from runner.storage.migrate import migrate

async def main():
    engine = open_engine(Dsn.parse(sys.argv[1], base=Path.cwd()), schema=sys.argv[2] or None, pool=1)
    while True:
        try:
            print(await migrate(engine))
            break
        except StorageUnavailable:  # one statement waits for seconds only; as a start does, try again
            pass
    await engine.dispose()

sys.stdin.readline()
asyncio.run(main())
"""


async def test_processes_that_start_together_migrate_once(store: tuple[str, str | None]) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MIGRATE, store[0], store[1] or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [(await asyncio.to_thread(process.communicate))[0] for process in processes]
    assert sorted(said) == [f"{list(REVISIONS)}\n", "[]\n", "[]\n"]


@pytest.mark.parametrize("schema", [None, "the Bus"])
async def test_who_comes_second_waits_for_the_first(postgres_dsn: str, schema: str | None) -> None:
    first, second = engine_of(postgres_dsn, schema), engine_of(postgres_dsn, schema)
    async with first.begin() as connection:
        await connection.run_sync(run_alembic, command.upgrade, "head", home_of(first).schema)
        task = asyncio.create_task(migrate(second))

        async def waiting() -> int:
            query = text(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
            )
            async with first.connect() as other:
                return await other.scalar(query) or 0

        waiters: int = await eventually(waiting)
        assert waiters == 1
    assert await task == []
    await first.dispose()
    await second.dispose()


async def test_no_timeout_ends_a_migration(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = engine_of(postgres_dsn)
    async with first.begin() as connection:
        await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('runner.migrate.public', 0))"))
        for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            monkeypatch.setitem(connector._SERVER_SETTINGS, name, "2s")
        monkeypatch.setattr(connector, "COMMAND_TIMEOUT", 2.0)
        second = engine_of(postgres_dsn)
        task = asyncio.create_task(migrate(second))

        async def waits() -> bool:
            query = text(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database() "
                "AND clock_timestamp() - query_start > '2500 ms'"
            )
            async with first.connect() as other:
                return task.done() or bool(await other.scalar(query))

        assert await eventually(waits)
    assert await task == list(REVISIONS)
    async with second.connect() as connection:
        assert await connection.scalar(text("SHOW statement_timeout")) == "2s"
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        assert raw._config.command_timeout == 2.0
    await first.dispose()
    await second.dispose()


async def test_an_interrupted_migration_leaves_nothing_and_can_be_repeated(
    engine: AsyncEngine, schema: str | None
) -> None:
    taken = "attempts_delivery"  # the name of an index that is made late
    prefix = prefix_of(engine, schema)
    async with engine.begin() as connection:
        if schema:
            await connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        await connection.execute(text(f"CREATE TABLE {prefix}{taken} (one integer)"))

    with pytest.raises(StorageError, match=f"{taken}.* already|already.*{taken}"):
        await migrate(engine)
    assert (await status(engine)).current is None

    async with engine.begin() as connection:
        await connection.execute(text(f"DROP TABLE {prefix}{taken}"))
    assert await migrate(engine) == list(REVISIONS)


async def test_tables_of_somebody_else_are_left_alone(engine: AsyncEngine, schema: str | None) -> None:
    prefix = prefix_of(engine, schema)
    async with engine.begin() as connection:
        if schema:
            await connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        await connection.execute(text(f"CREATE TABLE {prefix}events (title text)"))
    with pytest.raises(StorageError, match=r"tables named events are there already.*storage\.schema"):
        await migrate(engine)


async def test_a_database_ahead_of_this_version_is_refused_by_name(engine: AsyncEngine, schema: str | None) -> None:
    await migrate(engine)
    prefix = prefix_of(engine, schema)
    async with engine.begin() as connection:
        await connection.execute(text(f"UPDATE {prefix}alembic_version SET version_num = '9999'"))
    for call in (migrate, status):
        with pytest.raises(SchemaMismatch, match=rf"'9999'.*'{HEAD}'.*upgrade the runner"):
            await call(engine)


async def test_downgrade_removes_everything(engine: AsyncEngine, schema: str | None) -> None:
    await migrate(engine)

    async with engine.begin() as connection:
        await connection.run_sync(run_alembic, command.downgrade, "base", home_of(engine).schema)
    if engine.dialect.name == "postgresql":
        query = text(
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:schema) AND relkind <> 'i' "
            "UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace(:schema)"
        ).bindparams(schema=f'"{schema or "public"}"')
    else:
        query = text("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    async with engine.connect() as connection:
        assert (await connection.scalars(query)).all() in (
            ["alembic_version"],
            ["alembic_version", "alembic_version_pkc"],
        )
    assert (await status(engine)).pending == REVISIONS


async def test_what_runs_record_is_kept_as_rows_by_the_way_back(engine: AsyncEngine, schema: str | None) -> None:
    await migrate(engine)
    seqs, ids = ("[[1, 3]]", "[1, 2]") if engine.dialect.name == "sqlite" else ("{[1,3]}", "{1,2}")
    async with engine.begin() as connection:
        now = datetime.now(UTC)
        event = {"source": "/s", "type": "a", "created_at": now}
        await connection.execute(insert(events), [event | {"seq": seq, "id": str(seq)} for seq in (1, 3)])
        dead = {"event_seq": 3, "subscription_id": 1, "state": "dead", "attempts": 3, "updated_at": now}
        await connection.execute(insert(deliveries).values(dead))
        place = "" if engine.dialect.name == "sqlite" else f'"{schema or "public"}".'
        run = f"INSERT INTO {place}runs (first, last, seqs, subscriptions, settled_at)"
        at = "0" if engine.dialect.name == "sqlite" else "now()"
        await connection.execute(text(f"{run} VALUES (1, 3, '{seqs}', '{ids}', {at})".replace(":", r"\:")))
        await connection.run_sync(run_alembic, command.downgrade, "0012", home_of(engine).schema)
        columns = (deliveries.c.event_seq, deliveries.c.subscription_id, deliveries.c.state, deliveries.c.attempts)
        rows = await connection.execute(select(*columns).order_by(*columns))
        assert [tuple(row) for row in rows] == [
            (1, 1, "delivered", 1),
            (1, 2, "delivered", 1),
            (3, 1, "dead", 3),
            (3, 2, "delivered", 1),
        ]


@pytest.mark.parametrize("schema", [None, "the Bus"])
async def test_the_script_makes_the_same_tables(
    postgres: PostgresServer, postgres_dsn: str, schema: str | None
) -> None:
    postgres.psql(offline_sql("postgresql", schema), postgres_dsn)
    engine = engine_of(postgres_dsn, schema)
    assert (await status(engine)).pending == ()
    other = postgres.create_database()
    migrated = engine_of(other, schema)
    await migrate(migrated)
    for each in (engine, migrated):
        await each.dispose()
    path = f'SET search_path TO "{schema or "public"}";'
    function = "SELECT pg_get_functiondef('publish_event'::regproc);"
    by_script, by_runner = (postgres.psql(f"{path} {function} {_CATALOGUE}", dsn) for dsn in (postgres_dsn, other))
    postgres.drop_database(other)
    assert by_script == by_runner


async def test_the_script_for_sqlite_runs_as_it_is(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "runner.db"
    connection = sqlite3.connect(path)
    connection.executescript(offline_sql("sqlite", None))
    connection.close()
    engine = engine_of(f"sqlite:///{path}")
    assert await status(engine) == MigrationStatus(HEAD, HEAD, ())
    await engine.dispose()


async def test_a_role_that_may_not_create_schemas_can_use_one_that_is_there(
    postgres: PostgresServer, postgres_dsn: str
) -> None:
    role = f"role_{postgres_dsn.rsplit('_', 1)[1]}"
    postgres.psql(f"CREATE ROLE {role} LOGIN; CREATE SCHEMA bus AUTHORIZATION {role};", postgres_dsn)
    dsn = postgres_dsn.replace("//postgres@", f"//{role}@")
    engine = engine_of(dsn, "bus")
    assert await migrate(engine) == list(REVISIONS)
    await engine.dispose()
    engine = engine_of(dsn, "another")
    with pytest.raises(StorageError, match="permission denied for database"):
        await migrate(engine)
    await engine.dispose()
    engine = engine_of(dsn)
    with pytest.raises(StorageError, match="permission denied for schema public"):
        await migrate(engine)
    await engine.dispose()
    postgres.psql(f"DROP OWNED BY {role}; DROP ROLE {role};", postgres_dsn)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    engine = engine_of("postgresql://postgres@127.0.0.1:1/nowhere")
    with pytest.raises(StorageUnavailable):
        await migrate(engine)
    await engine.dispose()


def test_what_is_up_to_date_needs_no_alembic(tmp_path: Path) -> None:
    dsn = f"sqlite:///{tmp_path}/runner.db"
    program = _MIGRATE.replace("sys.stdin.readline()", "") + "\nprint('alembic' in sys.modules)\n"
    said = [
        subprocess.run([sys.executable, "-c", program, dsn, ""], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert said == [f"{list(REVISIONS)}\nTrue\n", "[]\nFalse\n"]


def test_migrating_says_nothing_by_itself(tmp_path: Path) -> None:
    program = "import logging\nlogging.basicConfig(level=logging.INFO)\n" + _MIGRATE.replace("sys.stdin.readline()", "")
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{tmp_path}/runner.db", ""],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not re.search("alembic|revision", done.stderr, re.IGNORECASE)
