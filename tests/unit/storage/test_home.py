from __future__ import annotations

from runner.storage.home import TABLES
from runner.storage.tables import metadata


def test_statements_know_every_table() -> None:
    assert list(TABLES) == sorted(metadata.tables)
