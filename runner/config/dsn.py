"""Data source names, in the spellings people paste."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote, unquote_to_bytes

from ..log.redaction import MASK
from .errors import complaint
from .secret import Secret

__all__ = ["TLS_LEVELS", "Dsn"]

_POSTGRESQL = frozenset({"postgres", "postgresql", "postgresql+asyncpg"})
_SQLITE = frozenset({"sqlite", "sqlite+aiosqlite"})
_EXAMPLES = "postgresql://user@host:5432/database or sqlite:///file.db"
_DEFAULT_PORT = 5432
_MOST_HOSTS = 100
_SOCKET_BYTES = 107  # the kernel's limit for the address of a socket
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")  # weakest first
_DEFAULT_MODE = "prefer"  # guarantees nothing, as libpq's
_SYSTEM = "system"
TLS_LEVELS = {"required": "require", "verify-ca": "verify-ca", "verify-full": "verify-full"}
_SESSIONS = ("any", "primary", "read-write")  # those of libpq's six with which a runner can write
_SETTINGS = ("application_name", "options")
_FILES = ("sslrootcert", "sslcert", "sslkey")
_KNOWN = ("host", "port", "user", "password", "dbname", "sslmode", "connect_timeout", "target_session_attrs")
_KNOWN_PARAMETERS = (*_KNOWN, *_FILES, *_SETTINGS)
_SYNONYMS = {"ssl": "sslmode", "database": "dbname"}
_ELSEWHERE = {
    "schema": "set storage.schema",
    "currentSchema": "set storage.schema",
    "pgbouncer": "set storage.pgbouncer",
    "connection_limit": "set storage.pool",
    "pool_size": "set storage.pool",
    "timeout": "use connect_timeout, in seconds",
    "channel_binding": "the driver has none; remove it, and use sslmode=verify-full",
}
_ENCODE = "a '/', '?', '#', '@', ':' or '%' in a user name or password has to be percent-encoded (%2F, %3F, …)"
_HostPort = tuple[str, str | None]
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dsn:
    """
    The address of the store, and the login.

    PostgreSQL: `hosts` with ports, in the order they are tried; a host that starts with `/` is the
    directory of a socket. `connect_timeout` is in seconds, for each host; None is no limit from here.
    `sslrootcert` of "system" stands for the authorities of the system. SQLite: `path`, absolute.
    `str()` never shows the password.
    """

    scheme: Literal["postgresql", "sqlite"]
    hosts: tuple[tuple[str, int], ...] = ()
    user: str | None = None
    password: Secret | None = None
    database: str | None = None
    path: Path | None = None
    sslmode: str = _DEFAULT_MODE
    sslrootcert: Path | str | None = None
    sslcert: Path | None = None
    sslkey: Path | None = None
    server_settings: Mapping[str, str] = field(default_factory=lambda: _NO_SETTINGS, hash=False)
    connect_timeout: float | None = None
    target_session_attrs: str = "any"

    @classmethod
    def parse(cls, text: str, base: Path) -> Dsn:
        """
        Parse a DSN.

        Understands libpq's URIs (several hosts, sockets, percent-encoding, its parameters) and SQLAlchemy's
        (`+asyncpg`, `+aiosqlite`, `?host=a:1&host=b:2`).

        Args:
            base: the directory that relative paths start from.

        Raises:
            ValueError: anything else; the message repeats nothing that could be a password.
        """
        scheme, separator, rest = text.partition("://")
        if re.search(r"[\x00-\x20\x7f]", text):
            raise ValueError("a DSN holds no spaces, line ends or control characters; percent-encode them")
        if separator and scheme in _SQLITE:
            return cls(scheme="sqlite", path=_sqlite_path(rest, base))
        if separator and scheme in _POSTGRESQL:
            return cls(scheme="postgresql", **_postgresql(rest, base))
        known = separator and re.fullmatch(r"[a-z][a-z0-9+.-]{0,30}", scheme)
        raise ValueError(f"expected {_EXAMPLES}, got {f'the scheme {scheme!r}' if known else 'text without a scheme'}")

    def completed(self, *, password: Secret | None, tls: str, environ: Mapping[str, str]) -> Dsn:
        """
        Return the DSN completed by the options beside it in the file, then by libpq's environment variables.

        Args:
            password: the one that is kept apart.
            tls: the lowest level of encryption, one of `TLS_LEVELS`, or None; sockets need none.
            environ: PGPASSWORD, PGSSLMODE, PGSSLROOTCERT, PGSSLCERT and PGSSLKEY are the defaults.

        Raises:
            ValueError: the password is given twice, or the DSN allows less than `tls`.
        """
        if password is not None and self.password is not None:
            raise ValueError("password: the DSN has one, too; give it once")
        found = environ.get("PGPASSWORD")
        mode = environ.get("PGSSLMODE") or self.sslmode if self.sslmode == _DEFAULT_MODE else self.sslmode
        files = {key: getattr(self, key) or _environ_file(environ.get(f"PG{key.upper()}")) for key in _FILES}
        return replace(
            self,
            password=self.password or password or (Secret(found) if found else None),
            **_checked_tls(_one_of("PGSSLMODE", mode, _SSL_MODES), files, tls if self.is_remote else ""),
        )

    @property
    def is_remote(self) -> bool:
        """Whether a host is reached by TCP, also on this machine; False for sockets and files."""
        return any(not host.startswith("/") for host, _ in self.hosts)

    @property
    def display(self) -> str:
        """The DSN for people and logs, with `***` in place of the password."""
        return self._url(MASK)

    def reveal(self) -> str:
        """Return the DSN with its password, for programs that need it; never log it."""
        return self._url(quote(self.password.reveal(), safe="") if self.password else "")

    def __str__(self) -> str:
        return self.display

    def _url(self, password: str) -> str:
        if self.path is not None:
            return f"sqlite:///{self.path}"
        user = quote(self.user or "", safe="") + (f":{password}" if self.password else "")
        hosts = ",".join(f"{_host_text(host)}:{port}" for host, port in self.hosts)
        database = quote(self.database or "", safe="")
        parameters: dict[str, object] = {
            "sslmode": self.sslmode if self.sslmode != _DEFAULT_MODE else None,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            **self.server_settings,
            "connect_timeout": f"{self.connect_timeout:g}" if self.connect_timeout else None,
            "target_session_attrs": self.target_session_attrs if self.target_session_attrs != "any" else None,
        }
        query = "&".join(f"{key}={quote(str(value), safe='/')}" for key, value in parameters.items() if value)
        return f"postgresql://{user}{'@' if user else ''}{hosts}/{database}{'?' if query else ''}{query}"


def _host_text(host: str) -> str:
    return f"[{quote(host, safe=':')}]" if ":" in host and not host.startswith("/") else quote(host, safe="")


def _sqlite_path(rest: str, base: Path) -> Path:
    name, _, query = rest.partition("?")
    name = name.removeprefix("/")
    if name in ("", ":memory:") or name.startswith("file:"):
        raise ValueError(
            "expected sqlite:///file.db; a database in memory cannot be shared by several connections, nor outlive them"
        )
    if query:
        raise ValueError("sqlite takes no parameters; remove what follows the '?'")
    if name.endswith("/"):
        raise ValueError("expected the path of a file, got that of a directory")
    return Path(os.path.abspath(base / name))


def _postgresql(rest: str, base: Path) -> dict[str, Any]:
    """Return the fields of a DSN from `authority/database?parameters`."""
    found = re.fullmatch(r"([^/?#]*)(?:/([^?#]*))?(?:\?([^#]*))?", rest)
    if not found:
        raise ValueError(f"a '#' cannot be part of a DSN; {_ENCODE}")
    authority, database, query = found[1], found[2] or "", found[3] or ""
    userinfo, at, hosts = authority.rpartition("@")
    if "@" in database or ("@" in query and not at):
        # The '/' or '?' that ended the host was part of a password: the message says so, and repeats nothing of it.
        raise ValueError(f"an '@' comes after the first '/' or '?'; {_ENCODE}")
    user, colon, password = userinfo.partition(":")
    given: dict[str, list[str]] = {}
    for name, value in (("user", user), ("password", password if colon else ""), ("dbname", database)):
        if value:
            given[name] = [_decode(value)]
    _add_parameters(given, query)
    named = [_split_port(part) for value in given.pop("host", []) for part in value.split(",")]
    if hosts and named:
        raise ValueError("the host is given twice: after the '//' and as a parameter")
    ports = [port for value in given.pop("port", []) for port in value.split(",")]
    found_hosts = [_split_encoded(part) for part in hosts.split(",")] if hosts else named or [("localhost", None)]
    return {
        "hosts": _hosts(found_hosts, ports),
        **_fields({name: values[0] for name, values in given.items()}, base),
    }


def _add_parameters(given: dict[str, list[str]], query: str) -> None:
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        key = _SYNONYMS.get(key, key)
        if key in _ELSEWHERE:
            raise ValueError(f"unknown parameter {key!r}: {_ELSEWHERE[key]}")
        if key not in _KNOWN_PARAMETERS:
            if re.fullmatch(r"[A-Za-z][A-Za-z_]{0,40}", key):
                raise ValueError(complaint(key, _KNOWN_PARAMETERS, what="parameter"))
            raise ValueError(f"unknown parameter, expected one of: {', '.join(_KNOWN_PARAMETERS)}; {_ENCODE}")
        if key in given and key not in ("host", "port"):
            raise ValueError(f"{key} is given twice")
        given.setdefault(key, []).append(_decode(value))


def _fields(given: Mapping[str, str], base: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "user": given.get("user"),
        "password": _password(given),
        "database": given.get("dbname"),
        "sslmode": _one_of("sslmode", given.get("sslmode", _DEFAULT_MODE), _SSL_MODES),
        "target_session_attrs": _one_of("target_session_attrs", given.get("target_session_attrs", "any"), _SESSIONS),
        "server_settings": MappingProxyType({key: given[key] for key in _SETTINGS if given.get(key)}),
    }
    fields |= {key: base.absolute() / given[key] for key in _FILES if given.get(key)}
    if given.get("sslrootcert") == _SYSTEM:
        fields["sslrootcert"] = _SYSTEM
        if "sslmode" not in given:
            fields["sslmode"] = "verify-full"
        elif fields["sslmode"] != "verify-full":
            raise ValueError(
                "sslrootcert=system: anybody can have a certificate of the system's; use sslmode=verify-full"
            )
    if given.get("sslkey") and not given.get("sslcert"):
        raise ValueError("sslkey: there is no sslcert that it belongs to; give both")
    timeout = given.get("connect_timeout", "0")
    if not re.fullmatch(r"[0-9]{1,4}", timeout):
        raise ValueError("connect_timeout: expected whole seconds, such as connect_timeout=5")
    if int(timeout):  # libpq: zero is no limit
        fields["connect_timeout"] = float(timeout)
    return fields


def _checked_tls(mode: str, files: Mapping[str, Path | str | None], level: str) -> dict[str, Any]:
    least = TLS_LEVELS.get(level)
    if files["sslrootcert"] == _SYSTEM and mode == _DEFAULT_MODE:
        mode = "verify-full"
    if least and mode == _DEFAULT_MODE:
        mode = least
    if least and _SSL_MODES.index(mode) < _SSL_MODES.index(least):
        raise ValueError(f"tls: {level} is more than sslmode={mode}, which is set, too; remove one of them")
    return {"sslmode": mode, **files}


def _environ_file(text: str | None) -> Path | str | None:
    if not text:
        return None
    return text if text == _SYSTEM else Path(text).absolute()


def _password(given: Mapping[str, str]) -> Secret | None:
    password = given.get("password")
    return Secret(password, public=(given.get("user"), given.get("dbname"))) if password else None


def _one_of(name: str, value: str, expected: tuple[str, ...]) -> str:
    if value not in expected:
        raise ValueError(f"{name}: expected one of: {', '.join(expected)}")
    return value


def _hosts(found: list[_HostPort], ports: list[str]) -> tuple[tuple[str, int], ...]:
    if len(found) > _MOST_HOSTS:
        raise ValueError(f"expected at most {_MOST_HOSTS} hosts")
    if len(ports) > 1 and len(ports) != len(found):
        raise ValueError("port: expected one, or as many as there are hosts")
    hosts = []
    for index, (host, port) in enumerate(found):
        if ports and port is not None:
            raise ValueError("the port is given twice: with the host and as a parameter")
        number = _port(port if port is not None or not ports else ports[index if len(ports) > 1 else 0])
        if host.startswith("/") and len(os.fsencode(f"{host}/.s.PGSQL.{number}")) > _SOCKET_BYTES:
            raise ValueError(f"the path of a socket has at most {_SOCKET_BYTES} bytes, /.s.PGSQL.{number} included")
        hosts.append((host, number))
    return tuple(hosts)


def _split_encoded(text: str) -> _HostPort:
    """Return host and port of one host after the `//`, where a ':' of a directory is percent-encoded."""
    if not text.lower().startswith("%2f"):
        return _split_port(_decode(text))
    directory, colon, port = text.partition(":")
    if colon and not re.fullmatch(r"[0-9]*", port, re.ASCII):
        raise ValueError("a ':' in the directory of a socket has to be written %3A; or give it as ?host=/directory")
    return _decode(directory), port if colon else None


def _split_port(text: str) -> _HostPort:
    """Return host and port of `host`, `host:port`, `[v6]`, `[v6]:port`, a bare `v6`, or a socket's directory."""
    if text.startswith("/"):
        return text, None  # a path, colons and all
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%.+)?)\](?::(.*))?", text)
    if found:
        return found[1], found[2]
    if text.count(":") > 1 and re.fullmatch(r"[0-9A-Fa-f:.]+", text):
        return text, None
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = port, ""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", host or "localhost"):
        raise ValueError(f"a host name holds letters, digits, '.', '-' and '_'; {_ENCODE}")
    return host or "localhost", port if colon else None


def _port(text: str | None) -> int:
    if not text:
        return _DEFAULT_PORT
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 0 < int(text) < 65536:
        raise ValueError(f"the port is no number from 1 to 65535; {_ENCODE}")
    return int(text)


def _decode(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError("a '%' that starts no percent-encoded byte has to be written %25")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("percent-encoded bytes that are not UTF-8") from None
    if "\0" in decoded:
        raise ValueError("a NUL character (%00) is not allowed")
    return decoded
