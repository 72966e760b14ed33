"""The program of the guide to embedding does what the guide says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.process import run_python

GUIDE = (Path(__file__).parents[2] / "docs" / "embedding.md").read_text()
BLOCKS = dict(re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))


def test_the_program_publishes_within_its_own_transaction(tmp_path: Path) -> None:
    (tmp_path / "bus.yaml").write_text(BLOCKS["yaml"])
    done = run_python(BLOCKS["python"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "confirm order 17\n"
