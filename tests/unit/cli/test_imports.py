"""What a verb need not load, it does not load: to begin is most of what `runner publish` takes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CONFIG = """\
deployment_id: d
storage: {dsn: 'sqlite:///bus.db'}
strategies: [polling, sqlite]
sinks: {log: stdout, crm: {webhook: 'https://crm.example/'}, bus: {nats: {subject: a, servers: 'nats://h'}}}
subscriptions: [{name: all, sink: log}]
"""

PROGRAM = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
from runner.cli import main
main()
"""

# Each with what it is for.
FOREIGN = {
    "aiohappyeyeballs": "webhooks that are sent",
    "alembic": "tables that are not up to date",
    "asyncpg": "PostgreSQL",
    "nats": "a connection to NATS",
    "pygments": "rich",
    "rich": "tables on a terminal",
    "tzdata": "schedules",
    "uvloop": "runner start",
}
OUR_OWN = {
    "runner.config.json_schema",
    "runner.nats.connection",
    "runner.runtime.runner",
    "runner.sinks.python",
    "runner.storage.postgres.database",
    "runner.strategies.nats",
    "runner.strategies.postgres",
    "runner.worker.backlog",
    "runner.worker.dispatch",
    "runner.worker.outlet",
    "runner.worker.worker",
}

# What `publish` does without on an existing deployment, besides: it goes by the drivers alone (decision 0066).
UNPUBLISHED = {
    "cronsim",
    "jsonschema_rs",
    "prometheus_client",
    "runner.api.application",
    "runner.periodic.pruner",
    "runner.storage.migrate",
    "runner.storage.records",
    "runner.storage.registry",
    "runner.storage.tables",
    "runner.storage.transactions",
    "sqlalchemy",
    "starlette",
}


@pytest.mark.parametrize("module", sorted(OUR_OWN | UNPUBLISHED))
def test_what_is_not_to_be_loaded_is_there(module: str) -> None:
    assert find_spec(module) is not None


def run(directory: Path, *arguments: str) -> set[str]:
    """Return the modules that were loaded when the command had ended."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("verb", [("publish", "a.b"), ("events", "list"), ("subscriptions", "list")])
def test_a_verb_loads_only_what_it_needs(tmp_path: Path, verb: tuple[str, ...]) -> None:
    (tmp_path / "runner.yaml").write_text(CONFIG)
    run(tmp_path, "publish", "x")  # makes the tables, for which Alembic is needed
    loaded = run(tmp_path, *verb)
    assert loaded & (FOREIGN.keys() | OUR_OWN) == set()


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
@pytest.mark.parametrize("options", [(), ("--json", "--data", '{"n": 1}', "--id", "1")])
def test_publish_goes_by_the_drivers_alone(
    request: pytest.FixtureRequest, tmp_path: Path, store: str, options: tuple[str, ...]
) -> None:
    """Of it, to begin is nearly all: what is loaded is what it costs."""
    text = CONFIG
    if store == "postgres":
        dsn = request.getfixturevalue("postgres_dsn")
        text = CONFIG.replace("sqlite:///bus.db", dsn).replace("[polling, sqlite]", "[polling, postgres]")
    (tmp_path / "runner.yaml").write_text(text)
    run(tmp_path, "publish", "x")  # makes the tables
    loaded = run(tmp_path, "publish", "a.b", *options)
    needed = {"asyncpg", "runner.storage.postgres.database", "runner.strategies.postgres"}
    assert loaded & (FOREIGN.keys() | OUR_OWN | UNPUBLISHED) == (needed if store == "postgres" else set())
