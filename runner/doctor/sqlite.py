"""Judgements on a file of SQLite: pure, on the facts of an examination."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..storage.contract.examination import FileFacts
from .postgres import size
from .verdict import Finding, fault, fine, warning

__all__ = ["corrupt", "judge_file", "judge_journal", "unwritable"]


def judge_file(facts: FileFacts, path: Path) -> Iterator[Finding]:
    """Yield whether the file is sound."""
    if facts.fault is not None:
        yield corrupt(path, facts.fault)
    else:
        structure = "sound" if facts.checked else "too large to be checked in time"
        yield fine("database", f"SQLite {facts.version}, {path}, {size(facts.size)}, {structure}")


def corrupt(path: Path, reason: str) -> Finding:
    """Return that the file is corrupt."""
    cure = (
        f"stop every runner, then sqlite3 {path} .recover | sqlite3 recovered.db; or go back to a copy. A disk that"
        " corrupts one file will corrupt others"
    )
    return fault("database", "corrupt", f"{path} is corrupt: {reason}", cure)


def judge_journal(facts: FileFacts) -> Iterator[Finding]:
    """Yield whether commits survive a crash, and no bug of the library puts the file at risk."""
    if facts.journal == "wal" and not facts.safe:
        measured = (
            f"the file is in WAL mode, and SQLite {facts.version} can corrupt it when several programs use it (fixed in"
            " 3.51.3, 3.50.7, 3.44.6)"
        )
        cure = "end the other programs that have it open, so that the next start leaves WAL mode; or upgrade SQLite"
        yield warning("durability", "wal_reset_bug", measured, cure)
        return
    how = "WAL" if facts.safe else f"rollback journal, because SQLite {facts.version} has the WAL-reset bug"
    yield fine("durability", f"synchronous = FULL on every connection, {how}")


def unwritable(path: Path) -> Finding | None:
    """Return why the bus cannot write to the file; None if it can."""
    for each, what in ((path.parent, "the directory, where the journal goes,"), (path, "the file")):
        if each.exists() and not os.access(each, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            cure = f"chown or chmod it for user {_user()}, or run as its owner"
            return fault("database", "unwritable", f"{what} of {path} cannot be written by {_user()}", cure)
    return None


def _user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):
        return str(os.geteuid())
