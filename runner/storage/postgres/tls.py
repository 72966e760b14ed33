"""TLS towards PostgreSQL, by libpq's rules; the driver takes a home directory that it may not enter for an outage."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...config.dsn import Dsn

__all__ = ["Encryption", "encryptions"]

Encryption = ssl.SSLContext | Literal[False]

_ADVISORY = ("allow", "prefer")  # they guarantee nothing, so nothing is checked against a root certificate, either


def encryptions(dsn: Dsn) -> tuple[Encryption, ...]:
    """
    Return the encryptions to try under libpq's sslmode, in order: a context for TLS, False for plain text.

    As in libpq, `require` with a root certificate is `verify-ca`, and what the DSN does not name is taken from
    `~/.postgresql`: root.crt, root.crl, postgresql.crt and postgresql.key, where they are and can be read.

    Raises:
        ValueError: a file that is needed is not there, or is not what it should be.
    """
    if dsn.sslmode == "disable" or not dsn.is_remote:
        return (False,)
    context = _context(dsn)
    match dsn.sslmode:
        case "allow":
            return False, context
        case "prefer":
            return context, False
    return (context,)


def _context(dsn: Dsn) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = dsn.sslmode == "verify-full"
    context.set_alpn_protocols(["postgresql"])
    advisory = dsn.sslmode in _ADVISORY
    root = dsn.sslrootcert or (None if advisory else _default("root.crt"))
    if root == "system":
        context.load_default_certs()
    elif root is not None:
        with _reading("sslrootcert", root):
            context.load_verify_locations(root)
    elif dsn.sslmode.startswith("verify-"):
        raise ValueError(
            f"sslmode={dsn.sslmode} needs a root certificate, and ~/.postgresql/root.crt cannot be read; add"
            " sslrootcert=FILE, or sslrootcert=system for the authorities of the system"
        )
    if advisory or root is None:
        context.verify_mode = ssl.CERT_NONE
    if root is not None and (revoked := _default("root.crl")) is not None:
        with _reading("the list of revoked certificates", revoked):
            context.load_verify_locations(revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    certificate = dsn.sslcert or _default("postgresql.crt")
    if certificate is not None:
        key = dsn.sslkey or (None if dsn.sslcert else _default("postgresql.key"))
        with _reading("sslcert", certificate), _reading("sslkey", key or certificate):
            context.load_cert_chain(certificate, key, password=lambda: "")  # never a question on the terminal
    return context


def _default(name: str) -> Path | None:
    """Return the file of that name in `~/.postgresql`, where there is one that can be read."""
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home directory
        path = Path.home() / ".postgresql" / name
        with path.open("rb"):
            return path
    return None


@contextlib.contextmanager
def _reading(what: str, path: Path | str) -> Iterator[None]:
    """Name the file that OpenSSL could not use; its own errors name none."""
    try:
        with Path(path).open("rb"):
            pass
        yield
    except ssl.SSLError as error:
        raise ValueError(
            f"{what}: {path} cannot be used: {error.reason or 'it is no PEM file of that kind'}"
        ) from error
    except OSError as error:
        raise ValueError(f"{what}: {path} cannot be read; correct the path or its rights") from error
