"""The documents as a whole: what is written from the code, links, and the order of the site."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.storage.home import TABLES
from tests.support.diagrams import pictures_of
from tests.support.documents import ROOT
from tests.support.links import ambiguous, anchors, links, local
from tests.support.reference import PAGES
from tests.support.site import gather, pages


@pytest.mark.parametrize("path", PAGES)
def test_a_page_that_is_written_from_the_code_is_as_the_code(path: str) -> None:
    assert (ROOT / path).read_text() == PAGES[path](), "`make reference` writes it anew"


def test_every_link_leads_to_a_page_and_a_heading() -> None:
    headings = {page: anchors(page.read_text()) for page in pages()}
    faults = []
    for page in pages():
        for line, link in links(page.read_text()):
            found = local(page, link)
            if found is None:
                continue
            file, heading = found
            if not file.exists() or (heading and heading not in headings.get(file, ())):
                faults.append(f"{page.relative_to(ROOT)}:{line}: {link}")
    assert faults == []


def test_lists_look_the_same_on_github_and_on_the_site() -> None:
    odd = [f"{page.relative_to(ROOT)}:{line}" for page in pages() for line in ambiguous(page.read_text())]
    assert odd == [], "an empty line before a list, four spaces before what belongs to an item"
    assert list(ambiguous("a\n- b\n- c\n\n   d\n\n1. e\n\n    f\n")) == [2, 5]


def test_the_site_has_every_page_once_in_the_order_of_a_reader() -> None:
    with (ROOT / "zensical.toml").open("rb") as file:
        named = list(_files(tomllib.load(file)["project"]["nav"]))
    every = {str(page.relative_to(ROOT)) for page in pages() if page.parent.name != "decisions"}
    assert len(named) == len(set(named))
    assert set(named) == every - {"README.md"} | {"index.md", "docs/decisions/index.md"}, (
        "zensical.toml gives the order"
    )
    assert named[0] == "index.md"


def test_the_pages_of_the_site_link_to_what_it_has(tmp_path: Path) -> None:
    gather(tmp_path)
    dead = []
    for page in tmp_path.rglob("*.md"):
        for line, link in links(page.read_text()):
            found = local(page, link)
            if found is not None and not found[0].is_file():
                dead.append(f"{page.relative_to(tmp_path)}:{line}: {link}")
    assert dead == []


def test_no_page_of_the_site_draws_with_a_program_from_elsewhere(tmp_path: Path) -> None:
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages()
        for name in pictures_of(page.read_text())
        if not (ROOT / "docs/img" / name).is_file()
    ]
    assert missing == [], "a diagram has changed: `python -m tests.support.diagrams` draws it"
    gather(tmp_path)
    assert [str(page) for page in tmp_path.rglob("*.md") if "```mermaid" in page.read_text()] == []
    assert "mermaid" not in (ROOT / "zensical.toml").read_text()


def test_every_table_is_told() -> None:
    told = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/how-it-works.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(TABLES)


def test_no_change_is_told_twice() -> None:
    entries = re.findall(r"^- .*(?:\n  .*)*", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(entries) == len(set(entries))
    assert all(re.match(r"- \[[A-Z][A-Za-z ]+\] ", entry) for entry in entries)


def test_every_problem_of_the_api_is_told() -> None:
    """The names that stand in the code beside a status, in whatever form."""
    table = (ROOT / "docs/http.md").read_text().partition("## Errors")[2].partition("\n## ")[0]
    code = "\n".join(file.read_text() for file in (ROOT / "runner/api").glob("*.py"))
    found = set(re.findall(r'[45]\d\d[,:] "([a-z]+(?:-[a-z]+)*)"', code))
    assert len(found) > 20
    assert {name for name in found if f"`{name}`" not in table} == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see [a](b.md#c) and ![d](e.png)", [(1, "b.md#c"), (1, "e.png")]),
        ("```md\n[a](b.md)\n```\n[c](d.md)", [(4, "d.md")]),
    ],
)
def test_links_are_found_outside_of_code(text: str, found: list[tuple[int, str]]) -> None:
    assert list(links(text)) == found


def test_a_heading_is_linked_only_where_all_renderers_agree() -> None:
    assert anchors("# The DSN\n## Who may call?\n## A -- b\n```\n# code\n```\n") == {"the-dsn", "who-may-call"}


def _files(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for name in [entry] if isinstance(entry, str) else entry.values():
            yield from [name] if isinstance(name, str) else _files(name)
