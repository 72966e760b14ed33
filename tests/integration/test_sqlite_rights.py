"""A SQLite file holds events and, in the reasons of failures, more: it is its owner's alone."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from runner.config.dsn import Dsn
from runner.storage.sqlite import connection as sqlite_connection
from tests.support.engines import open_engine


@pytest.fixture(autouse=True)
def generous() -> Iterator[None]:
    """As on most machines: what is made without a thought can be read by all."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def rights(directory: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in directory.iterdir()}


@pytest.mark.parametrize("wal", [True, False])
async def test_a_new_file_and_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wal: bool) -> None:
    monkeypatch.setattr(sqlite_connection, "wal_is_safe", lambda version: wal)
    engine = open_engine(Dsn(scheme="sqlite", path=tmp_path / "bus.db"))
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE t (n)"))
        await connection.execute(text("INSERT INTO t VALUES (1)"))
        beside = ["bus.db-shm", "bus.db-wal"] if wal else ["bus.db-journal"]
        assert rights(tmp_path) == dict.fromkeys(["bus.db", *beside], "0o600")
        await connection.commit()
    await engine.dispose()


async def test_a_file_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    sqlite3.connect(path).close()
    path.touch()
    path.chmod(0o660)
    engine = open_engine(Dsn(scheme="sqlite", path=path))
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE t (n)"))
        await connection.commit()
    await engine.dispose()
    assert rights(tmp_path)["bus.db"] == "0o660"
