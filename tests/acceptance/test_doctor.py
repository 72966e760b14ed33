"""The doctor names each planted fault and its cure, and nothing else; and nothing at all on a healthy deployment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import time_machine

from runner import load
from runner.config import load_config
from runner.config.dsn import Dsn
from runner.doctor.disk import kind_of
from runner.doctor.examination import examine
from runner.doctor.thresholds import Thresholds
from runner.doctor.verdict import Finding, Level
from runner.storage import open_storage
from tests.support.documents import ROOT
from tests.support.eventually import eventually
from tests.support.migrated import migrate_now
from tests.support.nats import NatsServer
from tests.support.pgbouncer import BINARY, PgBouncer
from tests.support.postgres import PostgresServer
from tests.support.process import COMMAND, environment, run_cli
from tests.support.server import HOST, free_port

TLS = Path(__file__).parents[1] / "integration" / "tls"

# A process that has just reported.
ALIVE = """
UPDATE bus SET deployment_id = 'shop';
INSERT INTO instances (id, host, pid, version, started_at, heartbeat_at)
VALUES ('a', 'host', 1, '1.0', clock_timestamp(), clock_timestamp());
"""

CONFIG = """\
deployment_id: shop
storage: {{dsn: "{dsn}"{storage}}}
strategies: [{strategies}]
sinks: {{{sinks}}}
{rest}
"""

LIMITS = Thresholds()


@dataclass
class Patient:
    """A deployment to be examined: its file, and where its database is."""

    directory: Path
    dsn: str
    psql: Callable[[str], str]
    limits: Thresholds = LIMITS

    def write(
        self, *, dsn: str = "", storage: str = "", strategies: str = "polling: 30s, postgres", **rest: str
    ) -> Path:
        parts = [f"{{{each.strip()}}}" if ":" in each else each.strip() for each in strategies.split(",")]
        text = CONFIG.format(
            dsn=dsn or self.dsn,
            storage=f", {storage}" if storage else "",
            strategies=", ".join(parts),
            sinks=rest.pop("sinks", ""),
            rest="\n".join(f"{key}: {value}" for key, value in rest.items()),
        )
        path = self.directory / "shop.yaml"
        path.write_text(text)
        path.chmod(0o600)
        return path

    def examine(self, path: Path | None = None) -> list[Finding]:
        """Return the findings, and check of each that it says what to do."""
        config = load_config(path or self.write())

        async def all_of_it() -> list[Finding]:
            return [each async for each in examine(config, self.limits)]

        found = asyncio.run(all_of_it())
        for each in found:
            assert each.measured, each
            assert bool(each.cure) == (each.level in (Level.FAULT, Level.WARNING)), each
        return found

    def bad(self, path: Path | None = None) -> dict[str, Finding]:
        """Return what is wrong, by its kind; a check that a busy machine leaves without an answer gets more time."""
        path, given = path or self.write(), self.limits
        for more in (1, 4, 16):
            self.limits = replace(given, budget=given.budget * more)
            found = {each.kind: each for each in self.examine(path) if each.level in (Level.FAULT, Level.WARNING)}
            if "no_answer" not in found:
                break
        return found


@pytest.fixture(scope="module")
def durable() -> Iterator[PostgresServer]:
    """A server as it should be."""
    server = PostgresServer(settings={"max_prepared_transactions": "5", "max_connections": "60"})
    fsync = {"fsync": server.settings.pop("fsync")}  # what the command line sets, ALTER SYSTEM does not change
    try:
        server.start()
        server.settings |= fsync
        yield server
    finally:
        server.discard()


@pytest.fixture(scope="module")
def tables(durable: PostgresServer) -> str:
    """The name of a database with our tables, to be copied."""
    dsn = durable.create_database()
    migrate_now(dsn)
    return dsn.rsplit("/", 1)[1]


@pytest.fixture
def patient(durable: PostgresServer, tables: str, tmp_path: Path) -> Iterator[Patient]:
    dsn = durable.create_database(tables)
    durable.psql(ALIVE, dsn)
    yield Patient(tmp_path, dsn, lambda sql: durable.psql(sql, dsn))
    durable.drop_database(dsn)


def name_of(dsn: str) -> str:
    return dsn.rsplit("/", 1)[1]


@contextlib.contextmanager
def system(patient: Patient, setting: str) -> Iterator[None]:
    """Change a setting of the whole server for a while."""
    name, _, value = setting.partition(" = ")

    def reload() -> None:
        patient.psql("SELECT pg_reload_conf()")

    async def is_set() -> bool:
        return patient.psql(f"SHOW {name}") == value

    before = patient.psql(f"SHOW {name}")
    patient.psql(f"ALTER SYSTEM SET {setting}")
    try:
        reload()
        asyncio.run(eventually(is_set))
        yield
    finally:
        patient.psql(f"ALTER SYSTEM RESET {name}")
        reload()
        value = before
        asyncio.run(eventually(is_set))


# ------------------------------------------------------------------------------------------------ healthy ones


async def test_a_healthy_deployment_on_postgres_and_nats_has_no_findings(
    durable: PostgresServer, nats_server: NatsServer, tmp_path: Path
) -> None:
    dsn = durable.create_database()
    patient = Patient(tmp_path, dsn, lambda sql: durable.psql(sql, dsn))
    path = patient.write(
        strategies=f"polling: 30s, postgres, nats: '{nats_server.url}'",
        sinks=f"crm: {{webhook: {{url: 'http://{HOST}:9/'}}}}, bus: {{nats: {{subject: 'orders.{{type}}'}}}}",
        subscriptions="[{name: a, types: [x], sink: crm}, {name: b, types: [x], sink: bus}]",
        schedules="[{name: nightly, cron: '0 2 * * *', timezone: Europe/Paris, event: {type: report.due}}]",
    )
    async with load(path) as runner:
        await eventually(lambda: all(each.hears is not False for each in runner.strategies()))

        def counted() -> str:
            return durable.psql("SELECT count(*), sum(n_tup_ins + n_tup_del) FROM pg_stat_user_tables", dsn)

        found = [each async for each in examine(load_config(path), replace(LIMITS, budget=60.0))]
        done = await asyncio.to_thread(run_cli, "doctor", "-c", path, "--timeout", "60s")
        assert counted()
    assert [each for each in found if each.level is not Level.OK] == []
    checks = {each.check for each in found}
    assert {"database", "tls", "encoding", "durability", "clock", "rights", "autovacuum", "horizon", "tables"} <= checks
    assert {"instances", "deliveries", "connections", "retention", "signals", "nats", "webhooks", "log"} <= checks
    assert {"configuration", "permissions", "open files", "time zones"} <= checks
    assert done.returncode == 0, done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"ok"}
    assert done.stderr.strip() == "healthy"
    durable.drop_database(dsn)


async def test_a_healthy_deployment_on_sqlite_has_no_findings(tmp_path: Path) -> None:
    path = tmp_path / "runner.yaml"
    path.write_text("deployment_id: shop\nstorage: {dsn: 'sqlite:///runner.db'}\n")
    async with load(path):
        found = [each async for each in examine(load_config(path))]
    in_memory = {"memory"}  # where the tests' own directory is in memory, it says so, and is right
    assert {each.kind for each in found if each.level is not Level.OK} <= in_memory
    assert {"database", "durability", "file system", "disk", "tables", "retention"} <= {each.check for each in found}


def test_the_patient_of_the_other_tests_is_well(patient: Patient) -> None:
    assert patient.bad() == {}


# --------------------------------------------------------------------------------- planted: the server's settings


def only(bad: dict[str, Finding], kind: str, cure: str) -> Finding:
    """Check that one kind of thing is wrong, and that the cure says this."""
    assert set(bad) == {kind}
    assert cure in bad[kind].cure
    return bad[kind]


def test_fsync_off(patient: Patient) -> None:
    with system(patient, "fsync = off"):
        found = only(patient.bad(), "fsync_off", "ALTER SYSTEM SET fsync = on")
    assert found.level is Level.FAULT


def test_full_page_writes_off(patient: Patient) -> None:
    with system(patient, "full_page_writes = off"):
        only(patient.bad(), "full_page_writes_off", "full_page_writes = on")


def test_autovacuum_off_on_the_server(patient: Patient) -> None:
    with system(patient, "autovacuum = off"):
        only(patient.bad(), "autovacuum_off", "ALTER SYSTEM SET autovacuum = on")


def test_synchronous_commit_off_for_the_database(patient: Patient) -> None:
    patient.psql(f"ALTER DATABASE {name_of(patient.dsn)} SET synchronous_commit = off")
    only(patient.bad(), "synchronous_commit_off", f"ALTER DATABASE {name_of(patient.dsn)}")


def test_a_database_that_takes_no_writes(patient: Patient) -> None:
    patient.psql(f"ALTER DATABASE {name_of(patient.dsn)} SET default_transaction_read_only = on")
    only(patient.bad(), "read_only", "RESET default_transaction_read_only")


def test_another_encoding(durable: PostgresServer, patient: Patient) -> None:
    durable.psql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    dsn = durable.dsn("latin")
    migrate_now(dsn)
    durable.psql(ALIVE, dsn)
    found = only(patient.bad(patient.write(dsn=dsn)), "encoding", "ENCODING 'UTF8'")
    assert "LATIN1" in found.measured
    durable.drop_database(dsn)


def test_an_old_server(patient: Patient) -> None:
    patient.limits = replace(LIMITS, oldest_server=990_000)
    only(patient.bad(), "old_version", "upgrade it to 99")


def test_a_clock_that_is_ahead(patient: Patient) -> None:
    with time_machine.travel(datetime.now(UTC) + timedelta(seconds=90)):
        found = only(patient.bad(), "clock", "NTP")
    assert found.level is Level.WARNING
    assert "1m30s ahead" in found.measured or "1m29s ahead" in found.measured


def test_a_clock_that_is_far_behind(patient: Patient) -> None:
    with time_machine.travel(datetime.now(UTC) - timedelta(minutes=10)):
        found = only(patient.bad(), "clock", "NTP")
    assert found.level is Level.FAULT
    assert "behind" in found.measured


# ------------------------------------------------------------------------------------------------ planted: the login


def test_a_server_that_is_down(patient: Patient) -> None:
    bad = patient.bad(patient.write(dsn=f"postgresql://postgres@{HOST}:{free_port()}/shop"))
    assert "connection refused" in only(bad, "unreachable", "start it").measured


def test_a_database_that_does_not_exist(patient: Patient) -> None:
    only(patient.bad(patient.write(dsn=patient.dsn + "_none")), "refused", "createdb")


async def test_a_certificate_that_nobody_verifies(patient: Patient, durable: PostgresServer) -> None:
    from tests.integration.test_tls import front

    async with front(durable, tls=True) as server:
        database = name_of(patient.dsn)
        dsn = f"postgresql://postgres@{HOST}:{server.port}/{database}"
        for parameters, kinds in (
            ("sslmode=require", {"unverified"}),
            (f"sslmode=verify-ca&sslrootcert={TLS / 'server.crt'}", set[str]()),
        ):
            config = load_config(patient.write(dsn=f"{dsn}?{parameters}"))
            found = [each async for each in examine(config)]
            bad = {each.kind: each for each in found if each.level in (Level.FAULT, Level.WARNING)}
            assert set(bad) == kinds
            for each in bad.values():
                assert "verify-full" in each.cure


def test_a_root_certificate_that_is_not_there(patient: Patient) -> None:
    dsn = f"{patient.dsn}?sslmode=verify-full&sslrootcert=/no/such.crt"
    assert "/no/such.crt" in only(patient.bad(patient.write(dsn=dsn)), "refused", "storage.dsn").measured


def test_a_role_without_a_right(patient: Patient) -> None:
    patient.psql("CREATE ROLE clerk LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO clerk")
    try:
        patient.psql("REVOKE DELETE ON dispatch FROM clerk")
        found = only(patient.bad(patient.write(dsn=patient.dsn.replace("postgres@", "clerk@"))), "rights", "--roles")
        assert "DELETE on dispatch" in found.measured
    finally:
        patient.psql("DROP OWNED BY clerk; DROP ROLE clerk")


# ------------------------------------------------------------------------------------------------ planted: the tables


def test_tables_that_are_missing(durable: PostgresServer, patient: Patient) -> None:
    dsn = durable.create_database()
    only(patient.bad(patient.write(dsn=dsn)), "not_at_head", "runner migrate")
    durable.drop_database(dsn)


def test_tables_of_an_earlier_version(patient: Patient) -> None:
    patient.psql("UPDATE alembic_version SET version_num = '0003'")
    assert "0003" in only(patient.bad(), "not_at_head", "runner migrate").measured


def test_tables_of_a_later_version(patient: Patient) -> None:
    patient.psql("UPDATE alembic_version SET version_num = '9999'")
    only(patient.bad(), "newer", "upgrade the runner")


def test_tables_of_another_deployment(patient: Patient) -> None:
    patient.psql("UPDATE bus SET deployment_id = 'other'")
    only(patient.bad(), "foreign", "another storage.schema")


def test_autovacuum_off_for_a_table(patient: Patient) -> None:
    patient.psql("ALTER TABLE dispatch SET (autovacuum_enabled = off)")
    assert "public.dispatch" in only(patient.bad(), "autovacuum_off", "RESET (autovacuum_enabled)").measured


def test_dead_rows(patient: Patient) -> None:
    patient.limits = replace(LIMITS, dead_rows=2000)
    patient.psql(
        """
        INSERT INTO paces (subscription_id, next_at) SELECT n, now() FROM generate_series(1, 5000) n;
        DELETE FROM paces;
        SELECT pg_stat_force_next_flush();
        """
    )
    assert "5,000 dead rows" in only(patient.bad(), "bloat", "VACUUM public.paces").measured


def test_nobody_serves(patient: Patient) -> None:
    patient.psql("DELETE FROM instances")
    only(patient.bad(), "no_live_instance", "runner start")


def test_versions_side_by_side(patient: Patient) -> None:
    patient.psql("INSERT INTO instances SELECT 'b', host, 2, '2.0', started_at, heartbeat_at FROM instances")
    assert "1.0, 2.0" in only(patient.bad(), "versions", "one version").measured


# ---------------------------------------------------------------------------------- planted: what keeps dead rows


def test_a_transaction_that_is_left_open(patient: Patient) -> None:
    patient.limits = replace(LIMITS, old_transaction=timedelta(milliseconds=50))
    with psycopg.connect(patient.dsn, application_name="report") as forgotten:
        forgotten.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        forgotten.execute("SELECT pg_sleep(0.05)")
        found = only(patient.bad(), "old_transaction", "pg_terminate_backend")
    assert "(report)" in found.measured
    assert "idle in transaction" in found.measured


def test_a_prepared_transaction(patient: Patient) -> None:
    patient.limits = replace(LIMITS, old_transaction=timedelta(0))
    patient.psql("BEGIN; INSERT INTO paces VALUES (1, now()); PREPARE TRANSACTION 'it''s forgotten'")
    try:
        only(patient.bad(), "prepared_transaction", "ROLLBACK PREPARED 'it''s forgotten'")
    finally:
        patient.psql("ROLLBACK PREPARED 'it''s forgotten'")


def test_a_forgotten_replication_slot(patient: Patient) -> None:
    patient.psql("SELECT pg_create_physical_replication_slot('gone', true)")
    try:
        only(patient.bad(), "replication_slot", "pg_drop_replication_slot('gone')")
    finally:
        patient.psql("SELECT pg_drop_replication_slot('gone')")


# ------------------------------------------------------------------------------------------------ planted: connections


def test_more_connections_than_the_server_has(patient: Patient) -> None:
    found = only(patient.bad(patient.write(storage="pool: 200")), "budget", "storage.pool")
    assert found.level is Level.FAULT
    assert "201" in found.measured


def test_no_room_for_a_rolling_restart(patient: Patient) -> None:
    found = only(patient.bad(patient.write(storage="pool: 40")), "budget", "storage.pool")
    assert found.level is Level.WARNING


def test_a_role_with_few_connections(patient: Patient) -> None:
    patient.psql(f"ALTER DATABASE {name_of(patient.dsn)} CONNECTION LIMIT 7")
    assert "the database has 7" in only(patient.bad(), "budget", "CONNECTION LIMIT").measured


# ------------------------------------------------------------------------------------------------ planted: signals


@pytest.mark.skipif(BINARY is None, reason="no pgbouncer on this machine")
def test_a_pooler_before_a_connection_that_listens(patient: Patient, durable: PostgresServer) -> None:
    pooler = PgBouncer(durable.port, size=5)
    try:
        pooler.start()
        direct = f"postgres: {{dsn: '{pooler.dsn(name_of(patient.dsn))}'}}"
        found = only(patient.bad(patient.write(strategies=f"polling: 30s, {direct}")), "pooled_listen", "direct DSN")
        assert "pooler" in found.measured
    finally:
        pooler.discard()


def test_nats_is_away(patient: Patient) -> None:
    patient.limits = replace(LIMITS, budget=1.5)
    bad = patient.bad(patient.write(strategies=f"polling: 30s, postgres, nats: 'nats://{HOST}:{free_port()}'"))
    assert set(bad) == {"unreachable_nats", "deaf"}
    assert "start the server" in bad["unreachable_nats"].cure


SUBJECT = "mesh.shop.events.notify"
PERMISSIONS = """
jetstream: {{store_dir: "{store}"}}
authorization: {{users: [
  {{user: mute, password: p, permissions: {{publish: {{deny: ["{subject}"]}}}}}}
  {{user: deaf, password: p, permissions: {{subscribe: {{deny: ["{subject}"]}}}}}}
  {{user: good, password: p, permissions: {{publish: {{deny: ["secret.>"]}}}}}}
]}}
"""


@pytest.fixture(scope="module")
def strict_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(PERMISSIONS.format(subject=SUBJECT, store=tmp_path_factory.mktemp("jetstream")))
    try:
        server.start()
        yield server
    finally:
        server.discard()


def as_user(server: NatsServer, user: str) -> str:
    return f"polling: 30s, nats: 'nats://{user}:p@{HOST}:{server.port}'"


def test_no_right_to_publish_signals(patient: Patient, strict_nats: NatsServer) -> None:
    patient.limits = replace(LIMITS, budget=1.5)
    bad = patient.bad(patient.write(strategies=as_user(strict_nats, "mute")))
    assert set(bad) == {"may_not_publish", "deaf"}
    assert f'publish: ["{SUBJECT}"]' in bad["may_not_publish"].cure


def test_no_server_to_signal_by(patient: Patient) -> None:
    patient.limits = replace(LIMITS, budget=1.5)
    bad = patient.bad(patient.write(strategies=f"polling: 30s, nats: 'nats://{HOST}:{free_port()}'"))
    assert "connection refused" in bad["deaf"].measured
    assert "--online" in bad["deaf"].cure
    assert "permissions" not in bad["deaf"].cure  # of somebody who is let in


def test_no_right_to_hear_signals(patient: Patient, strict_nats: NatsServer) -> None:
    patient.limits = replace(LIMITS, budget=1.5)
    found = only(patient.bad(patient.write(strategies=as_user(strict_nats, "deaf"))), "deaf", "subscribe:")
    assert SUBJECT in found.measured


def test_no_right_to_what_a_sink_publishes(patient: Patient, strict_nats: NatsServer) -> None:
    path = patient.write(
        strategies=as_user(strict_nats, "good"),
        sinks="bus: {nats: {subject: 'secret.{type}'}}",
        subscriptions="[{name: a, types: [x], sink: bus}]",
    )
    assert "secret.x" in only(patient.bad(path), "may_not_publish", "secret.x").measured


def test_a_stream_that_is_missing(patient: Patient, strict_nats: NatsServer) -> None:
    path = patient.write(
        strategies=as_user(strict_nats, "good"),
        sinks="bus: {nats: {subject: 'orders.{type}', jetstream: true}}",
        subscriptions="[{name: a, types: [x], sink: bus}]",
    )
    only(patient.bad(path), "stream", "nats stream add")


def test_a_host_that_does_not_resolve(patient: Patient) -> None:
    path = patient.write(
        sinks="crm: {webhook: {url: 'https://crm.invalid/events'}}", subscriptions="[{name: a, types: [x], sink: crm}]"
    )
    assert "crm.invalid" in only(patient.bad(path), "unresolved", "correct the URL of sink crm").measured


def test_a_host_at_an_address_that_is_not_allowed(patient: Patient) -> None:
    path = patient.write(
        sinks="crm: {webhook: {url: 'https://localhost/events', allow: {}}}",
        subscriptions="[{name: a, types: [x], sink: crm}]",
    )
    only(patient.bad(path), "not_allowed", "allow of sink crm")


# ---------------------------------------------------------------------------------- planted: files, log, time


def test_events_are_kept_for_ever(patient: Patient) -> None:
    only(patient.bad(patient.write(retention="{delivered: null}")), "for_ever", "retention.delivered")


def test_a_disk_too_small_for_the_retention(patient: Patient) -> None:
    append = "INSERT INTO events (source, id, type, time, data, created_at) SELECT '/s', n::text, 't', now(), "
    patient.psql(f"{append} 'x'::bytea, now() - interval '2 days' FROM generate_series(1, 3) n")
    patient.limits = replace(LIMITS, shrinking=1e-9)  # of the free space
    only(patient.bad(), "disk_too_small", "lower retention.delivered to")


def test_a_disk_that_is_full(patient: Patient) -> None:
    patient.limits = replace(LIMITS, free=2**62)
    assert "disk_full" in patient.bad()


def test_a_secret_that_everybody_can_read(patient: Patient) -> None:
    path = patient.write(dsn=patient.dsn.replace("postgres@", "postgres:tr0ub4dor@"))
    path.chmod(0o644)
    found = only(patient.bad(path), "readable", f"chmod 600 {path}")
    assert f"{path}:2 " in found.measured
    assert "tr0ub4dor" not in str(found)


@pytest.mark.parametrize("where", ["password", "key"])
def test_a_secret_file_that_everybody_can_read(patient: Patient, where: str) -> None:
    file = patient.directory / where
    shutil.copy(TLS / "server.key", file)
    if where == "password":
        file.write_text("tr0ub4dor")
    file.chmod(0o644)
    if where == "password":
        path = patient.write(storage='password: "${file:password}"')
    else:
        tls = f"{{cert: '{TLS / 'server.crt'}', key: '{file}'}}"
        path = patient.write(api=f"{{listen: '127.0.0.1:{free_port()}', tls: {tls}}}")
    if kind_of(file) in ("tmpfs", "ramfs"):
        pytest.skip("in memory, as in a container, it counts as private")
    assert str(file) in only(patient.bad(path), "readable", f"chmod 600 {file}").measured


def test_a_file_that_everybody_can_change(patient: Patient) -> None:
    path = patient.write()
    path.chmod(0o666)
    assert only(patient.bad(path), "writable", "chmod o-w").level is Level.FAULT


def test_a_token_that_has_ended(patient: Patient) -> None:
    tokens = "[{name: ops, sha256: '" + "a" * 64 + "', scopes: [read], expires: 2020-01-01}]"
    only(
        patient.bad(patient.write(api=f"{{listen: '127.0.0.1:{free_port()}', tokens: {tokens}}}")),
        "token_ends",
        "second",
    )


def test_an_odd_setting(patient: Patient) -> None:
    only(patient.bad(patient.write(sinks="unused: stdout")), "odd", "remove it")


def test_few_open_files(patient: Patient) -> None:
    only(patient.bad(patient.write(worker="{concurrency: 10000}", storage="pool: 5")), "open_files", "LimitNOFILE") if (
        _soft_limit() < 10_069
    ) else pytest.skip("this machine lets a process open many files")


def _soft_limit() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.parametrize(("log", "kind"), [("/dev/full", "unwritable"), ("pipe", "blocked"), ("gone", "unread")])
def test_a_log_that_cannot_be_written(patient: Patient, log: str, kind: str) -> None:
    reading, writing = os.pipe()
    try:
        if log == "pipe":
            os.set_blocking(writing, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writing, bytes(65536))
        elif log == "gone":
            os.close(reading)
        else:
            os.close(writing)
            writing = os.open(log, os.O_WRONLY)
        config = load_config(patient.write())

        async def of_the_log() -> list[Finding]:
            return [each async for each in examine(config, LIMITS, log=writing) if each.check == "log"]

        [found] = asyncio.run(of_the_log())
        assert found.kind == kind
        assert found.cure
    finally:
        os.close(writing)
        with contextlib.suppress(OSError):
            os.close(reading)


# ------------------------------------------------------------------------------------------------ planted: SQLite


@pytest.fixture
def embedded(tables_file: str, tmp_path: Path) -> Patient:
    file = Path(tables_file.removeprefix("sqlite:///"))

    async def settle() -> None:
        storage = open_storage(Dsn.parse(tables_file, base=tmp_path))
        try:
            await storage.take("shop", create=False, upgrade=False)
        finally:
            await storage.close()

    asyncio.run(settle())
    now = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    columns = "id, host, pid, version, started_at, heartbeat_at"
    _sqlite(file, f"INSERT INTO instances ({columns}) VALUES ('a', 'h', 1, '1', 0, {now})")
    return Patient(tmp_path, tables_file, lambda sql: _sqlite(file, sql))


def _sqlite(file: Path, sql: str) -> str:
    import sqlite3

    with contextlib.closing(sqlite3.connect(file)) as db, db:
        return str(db.execute(sql).fetchall())


def of_sqlite(patient: Patient, **options: str) -> dict[str, Finding]:
    bad = patient.bad(patient.write(strategies="polling: 30s, sqlite", **options))
    bad.pop("memory", None)
    return bad


def file_of(patient: Patient) -> Path:
    return Path(patient.dsn.removeprefix("sqlite:///"))


def test_an_embedded_patient_is_well(embedded: Patient) -> None:
    assert of_sqlite(embedded) == {}


def test_a_file_that_is_missing(embedded: Patient) -> None:
    file_of(embedded).unlink()
    only(of_sqlite(embedded), "missing", "runner start")
    assert not file_of(embedded).exists()


def test_a_file_that_is_no_database(embedded: Patient) -> None:
    file_of(embedded).write_bytes(b"no database at all" * 1000)
    only(of_sqlite(embedded), "refused", "move that file away")


def test_a_file_with_a_corrupt_page(embedded: Patient) -> None:
    with file_of(embedded).open("r+b") as file:
        for page in range(8, 30):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    only(of_sqlite(embedded), "corrupt", ".recover")


def test_a_file_without_our_tables(embedded: Patient) -> None:
    file_of(embedded).unlink()
    _sqlite(file_of(embedded), "CREATE TABLE other (x)")
    only(of_sqlite(embedded), "not_at_head", "runner migrate")


def test_a_directory_that_does_not_exist(embedded: Patient) -> None:
    only(of_sqlite(embedded, dsn="sqlite:////no/such/directory/runner.db"), "refused", "directory")


def test_a_file_in_wal_mode_under_a_library_with_the_bug(embedded: Patient) -> None:
    _sqlite(file_of(embedded), "PRAGMA journal_mode = WAL")
    bad = of_sqlite(embedded)
    from sqlite3 import sqlite_version_info

    from runner.storage.sqlite.connection import wal_is_safe

    assert set(bad) == (set() if wal_is_safe(sqlite_version_info) else {"wal_reset_bug"})
    assert _sqlite(file_of(embedded), "PRAGMA journal_mode") == "[('wal',)]"  # nothing was changed


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory here")
def test_a_file_in_memory(embedded: Patient) -> None:
    place = Path("/dev/shm") / f"runner-doctor-{os.getpid()}"
    place.mkdir()
    try:
        shutil.copy(file_of(embedded), place / "runner.db")
        path = embedded.write(strategies="polling: 30s, sqlite", dsn=f"sqlite:///{place / 'runner.db'}")
        only(embedded.bad(path), "memory", "move the file to a disk")
    finally:
        shutil.rmtree(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anything")
def test_a_file_that_cannot_be_written(embedded: Patient) -> None:
    file_of(embedded).chmod(0o400)
    only(of_sqlite(embedded), "unwritable", "chown or chmod")


# ------------------------------------------------------------------------------------------------ the command


def test_its_exit_codes_and_json(patient: Patient, tmp_path: Path) -> None:
    path = patient.write(dsn=f"postgresql://postgres@{HOST}:{free_port()}/shop")
    away = run_cli("doctor", "-c", path, "--json")
    assert away.returncode == 69
    told = json.loads(away.stdout)
    assert (told["verdict"], told["exit_code"]) == ("fault", 69)
    [database] = [each for each in told["checks"] if each["check"] == "database"]
    assert (database["verdict"], database["kind"]) == ("fault", "unreachable")
    assert "tables" in {each["check"] for each in told["checks"] if each["verdict"] == "skipped"}

    (tmp_path / "bad.yaml").write_text("deployment_id: shop\nstorage: {dsn: 'sqlite:///x.db'}\nsinkz: {}\n")
    bad = run_cli("doctor", "-c", tmp_path / "bad.yaml")
    assert bad.returncode == 78
    assert bad.stdout.startswith("fault    configuration")
    assert "bad.yaml:3:1" in bad.stdout
    assert "cure: " in bad.stdout

    odd = patient.write(sinks="unused: stdout")
    assert run_cli("doctor", "-c", odd, "--timeout", "60s").returncode == 1
    assert run_cli("doctor", "-c", odd, "--timeout", "60s", "--allow-warnings").returncode == 0


def test_a_server_that_never_answers_costs_the_budget_and_no_more(tmp_path: Path) -> None:
    import socket

    with socket.create_server((HOST, 0)) as silent:
        path = tmp_path / "runner.yaml"
        path.write_text(
            f"deployment_id: shop\nstorage: {{dsn: 'postgresql://a@{HOST}:{silent.getsockname()[1]}/shop'}}\n"
        )
        done = subprocess.run(
            [*COMMAND, "doctor", "-c", str(path), "--timeout", "500ms"],
            env=environment(None),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "no answer within 0.5 s" in done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert done.returncode in (1, 69)


def test_the_page_has_every_kind_of_finding() -> None:
    sources = "".join(each.read_text() for each in (ROOT / "runner" / "doctor").glob("*.py"))
    kinds = set(re.findall(r'(?:fault|warning)\(\s*"[a-z ]+",\s*"([a-z_]+)"', sources)) | {"failed", "no_answer"}
    assert len(kinds) > 40
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert {each for each in kinds if f"`{each}`" not in page} == set()
