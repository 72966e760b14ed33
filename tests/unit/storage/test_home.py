from __future__ import annotations

import subprocess
import sys

from runner.storage.home import TABLES
from runner.storage.tables import metadata

PUBLISHERS = """
import sys
from runner.storage import open_storage
from runner.storage.postgres import database, events, queue
from runner.storage.sqlite import database, events, queue
print(sorted({name.partition(".")[0] for name in sys.modules} & {"sqlalchemy", "alembic"}))
"""


def test_statements_know_every_table() -> None:
    assert list(TABLES) == sorted(metadata.tables)


def test_publishing_and_working_load_no_sqlalchemy() -> None:
    done = subprocess.run([sys.executable, "-c", PUBLISHERS], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
