"""The layout of the package, and the page that describes it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "runner"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MODULES = sorted(PACKAGE.rglob("*.py"))


def entries() -> list[str]:
    """Return the entries of the package, as `ls` shows them."""
    return sorted(path.name for path in PACKAGE.iterdir() if path.name != "__pycache__")


def layers() -> list[list[str]]:
    """Return the rooms of the package by layer, the highest first."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    [contract] = [each for each in contracts if each.get("containers") == ["runner"]]
    return [re.split(r" [|:] ", layer) for layer in contract["layers"]]


def rooms() -> list[str]:
    """Return the rooms that the page lists, in its order."""
    table = PAGE.split("## The rooms")[1].split("## ")[0]
    return re.findall(r"^\| `([\w/.]+)` \|", table, re.MULTILINE)


def paths() -> Iterator[str]:
    """Yield every path that the page names, from the root of the repository."""
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)):
        if re.fullmatch(r"[\w./-]+", span) and ("/" in span or span.endswith((".py", ".md", ".toml", ".yaml"))):
            there = (
                span.split("/")[0] in ("runner", "tests", "docs", "configs", "migrations") or (ROOT / span).is_file()
            )
            yield span if there else f"runner/{span}"


def test_ls_reads_as_the_architecture() -> None:
    assert len(entries()) <= 30


def test_sql_is_with_the_stores_and_the_migrations() -> None:
    places = (PACKAGE / "storage", ROOT / "migrations")
    found = [*ROOT.glob("*.sql"), *PACKAGE.rglob("*.sql")]
    assert [path for path in found if not any(path.is_relative_to(place) for place in places)] == []


def test_every_room_is_on_the_page_in_the_order_of_the_layers() -> None:
    named = [room.strip("/").removesuffix(".py") for room in rooms()]
    assert sorted(named) == sorted(Path(entry).stem for entry in entries() if not re.match(r"__|py\.typed", entry))
    depth = {room: number for number, layer in enumerate(layers()) for room in layer}
    assert [depth[room] for room in named] == sorted(depth[room] for room in named)


@pytest.mark.parametrize("path", sorted(set(paths())))
def test_what_the_page_names_is_there(path: str) -> None:
    """A name to be chosen stands for any: then there are neighbours."""
    if "NAME" in path:
        directory, _, name = path.rpartition("/")
        assert list((ROOT / directory).glob(re.sub("NNNN|NAME", "*", name)))
    else:
        assert (ROOT / path).exists()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_stay_small(module: Path) -> None:
    text = module.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            assert len(methods) <= 20, node.name
            for each in methods:
                if each.name == "__init__":
                    assert len(each.args.args) + len(each.args.kwonlyargs) - 1 <= 8, node.name
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60 + _described(node), node.name


def _described(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a docstring."""
    first = node.body[0]
    return (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_what_they_describe(module: Path) -> None:
    """A subject and a verb, or a noun; not with a riddle."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or "").split("\n")[0]
            assert not re.match(r"(What|Whatever|Who|Whoever|Whose|Nobody|Somebody|Anybody)\b", first), first
