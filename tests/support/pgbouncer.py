"""A real pgbouncer, where the machine has one: no Python package brings it."""

from __future__ import annotations

import os
import shutil
import socket

from .server import HOST, Server

BINARY = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

_USER = "nobody"  # it refuses to run as root

_CONFIG = """\
[databases]
* = host={host} port={server} user=postgres
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = {size}
"""


class PgBouncer(Server):
    """A pgbouncer in transaction mode before the PostgreSQL on `server`'s port, with `size` connections to it."""

    def __init__(self, server: int, *, size: int) -> None:
        super().__init__("pgbouncer")
        self._config = _CONFIG.format(host=HOST, server=server, port=self.port, size=size)

    def start(self) -> None:
        """Start, and return when it takes connections."""
        assert BINARY is not None
        path = self.directory / "pgbouncer.ini"
        path.write_text(self._config)
        self.directory.chmod(0o755)
        self._launch([BINARY, path], self._listens, user=_USER if os.geteuid() == 0 else None)

    def dsn(self, database: str) -> str:
        """The address of a database behind it; `pgbouncer` is its own console."""
        return f"postgresql://postgres@{HOST}:{self.port}/{database}"

    def _listens(self) -> bool:
        try:
            socket.create_connection((HOST, self.port), timeout=1).close()
        except OSError:
            return False
        return True
