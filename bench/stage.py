"""Where trials happen: one PostgreSQL and one NATS for the whole run, a fresh database and process for each trial."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer

__all__ = ["Stage", "Trial"]

_ROOT = Path(__file__).parents[1]

# Enough room that no checkpoint falls into one trial and not into the next. fsync and synchronous_commit stay on.
_SETTINGS = {
    "max_connections": "300",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """
    One thing to measure of one contender.

    Attributes:
        key: the name of its results, `measure/contender`.
        measure: the function in `trial.py` that does it.
        options: its arguments.
        place: fields of `Place`.
        sqlite: work on a file instead of a server.
        once: one round is enough, because the trial repeats by itself.
    """

    key: str
    measure: str
    options: Mapping[str, Any] = field(default_factory=dict)
    place: Mapping[str, Any] = field(default_factory=dict)
    sqlite: bool = False
    once: bool = False

    @property
    def contender(self) -> str:
        """Who is measured."""
        return self.key.rpartition("/")[2]


class Stage:
    """Runs trials; the servers live as long as the `with` block."""

    def __init__(self) -> None:
        self.postgres = PostgresServer(18, fsync=True, settings=_SETTINGS)
        self.nats = NatsServer(jetstream=True)

    def __enter__(self) -> Self:
        """Start the servers."""
        try:
            self.postgres.start()
            self.nats.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the servers and remove what they stored."""
        self.postgres.discard()
        self.nats.discard()

    def versions(self) -> dict[str, str]:
        """Return the versions of the servers."""
        postgres = self.postgres.psql("SHOW server_version")
        with socket.create_connection(("127.0.0.1", self.nats.port), timeout=5) as connection:
            greeting = json.loads(connection.recv(4096).split(b" ", 1)[1].split(b"\r\n")[0])
        return {"PostgreSQL": postgres, "nats-server": greeting["version"]}

    def run(self, trial: Trial) -> dict[str, Any]:
        """Return what one trial measured; end the whole run if it went wrong."""
        database = self.postgres.create_database()
        try:
            with tempfile.TemporaryDirectory(prefix="runner-bench-") as directory:
                place = {"contender": trial.contender, "dsn": database, "nats": self.nats.url, "directory": directory}
                if trial.sqlite:
                    place["dsn"] = f"sqlite:///{directory}/bench.db"
                spec = {"measure": trial.measure, "place": {**place, **trial.place}, **trial.options}
                command = [sys.executable, "-W", "ignore", "-m", "bench.trial", json.dumps(spec)]
                done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=1200, check=False)
        finally:
            self.postgres.drop_database(database)
        if done.returncode != 0:
            raise SystemExit(f"{trial.key}: the trial failed, so the run ends here\n{done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result
