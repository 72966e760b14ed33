"""Certificates and keys for TLS, in PEM files that the configuration names."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import PrivateAttr, ValidationInfo, model_validator

from .fields import Model, context_of

__all__ = ["Certificates", "identify", "trust"]


class Certificates(Model):
    """
    A section that names PEM files. Sections are equal if the files have the same names and the same content.

    So a file that is replaced is a change at the next reload, and the files are watched like the configuration file.
    """

    _content: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="after")
    def _read(self, info: ValidationInfo) -> Self:
        paths = [value for _, value in self if isinstance(value, Path)]
        self._content = tuple(map(_digest, paths))
        context_of(info).certificates.update(paths)
        return self


def trust(context: ssl.SSLContext, name: str, path: Path) -> None:
    """
    Have `context` trust the authorities in a file.

    Raises:
        ValueError: the file cannot be used; the message begins with `name`, the key that names it.
    """
    with _reading(name, path):
        context.load_verify_locations(path)


def identify(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """
    Have `context` present a certificate.

    Raises:
        ValueError: a file cannot be used; the message begins with `cert` or `key`, whichever names it.
    """
    with _reading("cert", certificate):
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)  # the next error is of the key
    with _reading("key", key):
        context.load_cert_chain(certificate, key, password=_no_password)


def _no_password() -> str:
    """Refuse a key with a password; without this OpenSSL asks for it on the terminal."""
    raise _Locked


class _Locked(Exception):
    """A key is encrypted."""


@contextlib.contextmanager
def _reading(name: str, path: Path) -> Iterator[None]:
    """Name the file that OpenSSL could not use; its own errors name none."""
    try:
        path.read_bytes()
        yield
    except _Locked:
        raise ValueError(
            f"{name}: {path} has a password, which nobody can enter here; expected a key without one"
        ) from None
    except ssl.SSLError as error:
        reason = (error.reason or "it is no PEM file of that kind").replace("_", " ")
        raise ValueError(f"{name}: {path} cannot be used: {_REASONS.get(reason, reason.lower())}") from error
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read; correct the path or its rights") from error


_REASONS = {
    "KEY VALUES MISMATCH": "it is not the key of the certificate",
    "NO CERTIFICATE OR CRL FOUND": "it has no certificate",
    "PEM LIB": "it is no PEM file of that kind",
}


def _digest(path: Path) -> str:
    """Return a digest of the content; empty where it cannot be read, which is reported where it is used."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
