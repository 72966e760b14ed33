"""What a case is given: a trial on a real PostgreSQL that syncs to disk, and a real nats-server."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer

from .report import publish
from .sabotage import MUTANTS
from .trial import Outcome, Trial


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a case be chosen by its number (`-k FI-05`), and give it time on a busy machine."""
    for item in items:
        mark = item.get_closest_marker("chaos")
        if mark is not None:
            item.extra_keyword_matches.update(str(each) for each in mark.args[:1])
            item.add_marker(pytest.mark.timeout(600))  # it waits for conditions; this ends one that never comes


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The one number every choice of the run follows from."""
    given: int | None = request.config.getoption("--seed")
    return random.SystemRandom().randrange(10**6) if given is None else given


@pytest.fixture(scope="session")
def durable_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server that syncs to disk; a case that hurts its server asks for `make_postgres`."""
    server = PostgresServer(request.config.getoption("--postgres"))
    try:
        server.start()
        yield server
    finally:
        server.discard()


@pytest.fixture
def make_trial(
    request: pytest.FixtureRequest, tmp_path: Path, seed: int, nats_server: NatsServer
) -> Iterator[Callable[..., Trial]]:
    """Make a trial on a new database of a server, or in a file of SQLite; `mutant` names what is broken in it."""
    made: list[tuple[Trial, Callable[[], None]]] = []
    mark = request.node.get_closest_marker("chaos")
    case, what = (*mark.args, "")[:2]

    def make(place: PostgresServer | Path, *, nats: str | None = nats_server.url, mutant: str = "") -> Trial:
        version = None if isinstance(place, Path) else place.version
        outcome = Outcome(case, inspect.getdoc(MUTANTS[mutant]) or "" if mutant else what, seed, version, mutant=mutant)
        if isinstance(place, Path):
            made.append((Trial(tmp_path, outcome, f"sqlite:///{place}", None), lambda: None))
        else:
            dsn = place.create_database()
            drop = functools.partial(_drop, place, dsn)
            made.append((Trial(tmp_path, outcome, dsn, nats), drop))
        return made[-1][0]

    yield make
    for trial, drop in made:
        trial.close()
        drop()
    seen = [trial.outcome for trial, _ in made if trial.verified or (trial.outcome.mutant and trial.outcome.found)]
    page = request.config.getoption("--chaos-report")
    if page and seen:  # case by case: a run that is broken off keeps what it saw
        publish(seen, Path(page))


@pytest.fixture
def trial(make_trial: Callable[..., Trial], durable_postgres: PostgresServer) -> Trial:
    """A trial on a database of the shared server."""
    return make_trial(durable_postgres)


def _drop(postgres: PostgresServer, dsn: str) -> None:
    if postgres.running:
        postgres.drop_database(dsn)
