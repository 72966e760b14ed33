"""Checks of the files that a DSN names."""

from __future__ import annotations

import os

from ..config.dsn import Dsn

__all__ = ["unusable_file"]


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
