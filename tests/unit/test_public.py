"""The public surface: small, sorted, complete, and cheap to import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import runner
from runner import errors


def test_public_names_are_sorted_and_exist() -> None:
    assert list(runner.__all__) == sorted(runner.__all__)
    assert [name for name in runner.__all__ if getattr(runner, name, None) is None] == []
    assert set(runner.__all__) <= set(dir(runner))


def test_type_checkers_see_the_same_names_as_the_interpreter() -> None:
    tree = ast.parse(Path(runner.__file__).read_text())
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    assert imported == set(runner.__all__)


def test_the_tree_of_errors_is_that_of_the_classes() -> None:
    path: list[str] = []
    parents = {}
    for branches, name in re.findall(r"^    ([│├└─ ]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE):
        del path[len(branches) // 4 :]
        parents[name] = path[-1] if path else "Exception"
        path.append(name)
    classes = [each for name in errors.__all__ if isinstance(each := getattr(errors, name), type)]
    assert parents == {each.__name__: each.__base__.__name__ for each in classes if each.__base__ is not None}


def test_importing_the_package_loads_no_driver() -> None:
    heavy = ("aiohappyeyeballs", "alembic", "asyncpg", "nats", "pydantic", "rich", "sqlalchemy")
    script = f"import sys, runner; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == []
