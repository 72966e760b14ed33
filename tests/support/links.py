"""Links and headings of documents in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

__all__ = ["ambiguous", "anchors", "links", "local"]

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})[^\n]*\n.*?^(?P=indent)(?P=marks)$", re.M | re.S)
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_ITEM = re.compile(r"(-|\d+\.) ")
_HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def links(text: str) -> Iterator[tuple[int, str]]:
    """Yield every link and picture outside of code blocks, with its line."""
    text = _without_code(text)
    for found in _LINK.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, found[1]


def anchors(text: str) -> set[str]:
    """
    Return what a link to a heading may end with: what GitHub and Python-Markdown both make of the heading.

    A heading of which they make different things is left out; no link to it would hold in both.
    """
    found = set()
    for heading in _HEADING.findall(_without_code(text)):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        github = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        if github == re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.lower()).strip()):
            found.add(github)
    return found


def ambiguous(text: str) -> Iterator[int]:
    """
    Yield the lines of lists that GitHub and Python-Markdown read differently.

    For the latter a list begins after an empty line, and a paragraph inside of an item is indented by four spaces.
    """
    blank = re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), _without_code(text), flags=re.S)
    lines = ["", *blank.splitlines()]
    for number, (before, line) in enumerate(pairwise(lines), 1):
        begins = _ITEM.match(line) and before.strip() and not (_ITEM.match(before.lstrip()) or before.startswith("  "))
        if begins or (not before.strip() and re.match(r" {1,3}\S", line)):
            yield number


def _without_code(text: str) -> str:
    """Return the text with empty lines in place of code blocks."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)


def local(page: Path, link: str) -> tuple[Path, str] | None:
    """Return the file and the heading that a link of a page leads to; None for one that leads elsewhere."""
    if re.match(r"[a-z][a-z0-9+.-]*:", link):
        return None
    path, _, heading = link.partition("#")
    return ((page.parent / path).resolve() if path else page), heading
