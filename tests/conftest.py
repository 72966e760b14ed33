"""Fixtures that every suite may ask for: real servers, started once and only when a test needs one."""

from __future__ import annotations

import functools
import gc
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from .support.migrated import migrate_now
from .support.nats import NatsServer
from .support.postgres import PostgresServer

# A busy machine makes an example slow, and no test here is about speed.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `pytest --postgres 16` run everything on the older of the two packaged versions, and seed the chaos suite."""
    parser.addoption("--postgres", type=int, default=18, choices=(16, 18), help="PostgreSQL version (default: 18)")
    parser.addoption("--seed", type=int, default=os.environ.get("CHAOS_SEED"), help="repeats a run of tests/chaos")
    parser.addoption("--chaos-report", default="", metavar="PAGE", help="write what the cases saw into this page")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude what is collected from every later look for garbage: each took half a second, in the middle of a test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the documents, which take longest: at the end, the other processes would wait for them."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/acceptance/test_documents.py"))


@pytest.fixture(autouse=True)
def logging_as_it_comes() -> None:
    """Undo what a test before this one configured: a runner it started, say."""
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The shared server; it does not sync to disk, so a test that kills its server asks for `make_postgres`."""
    server = PostgresServer(request.config.getoption("--postgres"), fsync=False)
    try:
        server.start()
        yield server
    finally:
        server.discard()


@pytest.fixture
def postgres_dsn(postgres: PostgresServer) -> Iterator[str]:
    """The DSN of a fresh, empty database on the shared server."""
    dsn = postgres.create_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer) -> Callable[[str | None], str]:
    """The name of a database with our tables in a schema, to be copied: making them takes several times as long."""

    @functools.cache
    def migrated(schema: str | None) -> str:
        dsn = postgres.create_database()
        migrate_now(dsn, schema)
        return dsn.rsplit("/", 1)[1]

    return migrated


@pytest.fixture
def tables_in(postgres: PostgresServer, migrated_postgres: Callable[[str | None], str]) -> Iterator[Callable[..., str]]:
    """Make fresh databases with our tables in a schema (default: the usual one), nothing in them; return the DSN."""
    made: list[str] = []

    def make(schema: str | None = None) -> str:
        made.append(postgres.create_database(migrated_postgres(schema)))
        return made[-1]

    yield make
    for dsn in made:
        postgres.drop_database(dsn)


@pytest.fixture
def tables_dsn(tables_in: Callable[..., str]) -> str:
    """The DSN of a fresh database with our tables, and nothing in them."""
    return tables_in()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with our tables, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "runner.db"
    migrate_now(f"sqlite:///{path}")
    return path


@pytest.fixture
def tables_file(migrated_sqlite: Path, tmp_path: Path) -> str:
    """The DSN of a fresh SQLite file with our tables, `runner.db` in the test's directory."""
    return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path / 'runner.db')}"


@pytest.fixture
def make_postgres(request: pytest.FixtureRequest) -> Iterator[Callable[..., PostgresServer]]:
    """Start a PostgreSQL server for this test alone; arguments as `PostgresServer`."""
    servers: list[PostgresServer] = []

    def make(version: int | None = None, **options: object) -> PostgresServer:
        server = PostgresServer(version or request.config.getoption("--postgres"), **options)  # type: ignore[arg-type]  # forwarded as given
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.discard()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    """The shared nats-server, with JetStream; a test that stops its server asks for `make_nats_server`."""
    server = NatsServer(jetstream=True)
    try:
        server.start()
        yield server
    finally:
        server.discard()


@pytest.fixture
def make_nats_server() -> Iterator[Callable[..., NatsServer]]:
    """Start a nats-server for this test alone; arguments as `NatsServer`."""
    servers: list[NatsServer] = []

    def make(config: str = "", *, jetstream: bool = False) -> NatsServer:
        server = NatsServer(config, jetstream=jetstream)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.discard()
