"""Checks of the files that a DSN and the listener name."""

from __future__ import annotations

import os

from ..config import Config
from ..config.dsn import Dsn
from .faults import Faults

__all__ = ["check_listener", "unusable_file"]


def check_listener(config: Config, faults: Faults) -> None:
    """Collect the fault of a certificate that the listener cannot present."""
    if config.api is not None and config.api.tls is not None:
        with faults.at("api", "tls"):
            config.api.tls.context()


def unusable_file(dsn: Dsn, writes: bool) -> str | None:
    """Return the fault of a file named by the DSN, which would otherwise look like an unreachable database."""
    if dsn.path is not None:
        directory = dsn.path.parent
        if not directory.is_dir():
            return f"the directory {directory} does not exist; make it first"
        if dsn.path.is_dir():
            return f"{dsn.path} is a directory, expected a file"
        if writes and not all(os.access(path, os.W_OK) for path in (directory, dsn.path) if path.exists()):
            return f"{dsn.path} or its directory is not writable; SQLite writes to both"
        return None
    from ..storage.postgres.tls import encryptions

    try:
        encryptions(dsn)
    except ValueError as error:
        return str(error)
    return None
