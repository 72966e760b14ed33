"""What docs/lessons.md and docs/reliability.md say of the tests is so."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LESSONS = (ROOT / "docs" / "lessons.md").read_text()
NAMED = re.compile(r"`([a-z_/]+\.py)::([\w:]+)`")


@cache
def cases(path: Path) -> set[str]:
    """Return the tests in a file, as pytest names them."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}::{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return {name for name in found if name.rsplit("::", 1)[-1].startswith("test_")}


@pytest.mark.parametrize("page", ["lessons.md", "reliability.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    named = NAMED.findall((ROOT / "docs" / page).read_text())
    assert named
    missing = [f"{file}::{name}" for file, name in named if name not in cases(ROOT / "tests" / file)]
    assert not missing


def test_every_lesson_is_answered() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", LESSONS, re.MULTILINE)
    numbers = [int(number) for number, _, _ in rows]
    assert numbers[:92] == list(range(1, 93))
    assert len(set(numbers)) == len(numbers)
    for number, _, proof in rows:
        assert NAMED.search(proof) or "decisions/" in proof, f"lesson {number} has no test"


def test_no_lock_belongs_to_a_session() -> None:
    """A pool gives the session to somebody else, and the lock with it."""
    sources = [path for top in ("runner", "migrations") for path in (ROOT / top).rglob("*") if path.suffix in _KINDS]
    assert len(sources) > 50
    found = [str(path) for path in sources if re.search(r"pg_(try_)?advisory_(un)?lock", path.read_text())]
    assert not found


_KINDS = {".py", ".sql"}
