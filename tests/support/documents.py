"""The documents as their readers use them: blocks to be pasted, and what these print."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ROOT", "Block", "Command", "alike", "commands", "plain", "read"]

ROOT = Path(__file__).parents[2]

NOTES = frozenset({"faulty", "first", "in a clone", "not run", "restarted", "run by"})
"""
What an HTML comment before a block may say of it.

`faulty`: this configuration has faults on purpose. `first: COMMANDS`: what the text takes for granted, run before the
block. `in a clone`: only for who installs from the sources. `not run: REASON`. `restarted: COMMAND`: what goes on is
ended before the block, and this started in its place. `run by: TEST`: that test runs it, because the state it shows
takes more than pasting.
"""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
_COMMENTS = re.compile(r"(?:<!--(?:(?!-->).)*-->\s*)*\Z", re.S)
_COMMENT = re.compile(r"<!-- (?P<key>[a-z ]+?)(?::\s(?P<value>.*?))?\s-->", re.S)

# What is otherwise each time, in the order in which it is looked for, and what it is called here.
_VARYING = (
    (r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z", "TIME"),
    (r"(?:\d+(?:\.\d+)?(?:us|ms|[smhdw]))+\b", "T"),
    (r"\d+\.\d/s", "R"),
    (r"(?:postgresql|sqlite)://\S+", "DSN"),
    (r"(?:\S+/|python -m )runner(?= publish)", "runner"),
    (r"\b[\w.-]+@[\w.-]+\b", "WHO"),
    (r"(?<![\w.-])(?![\w.-]+\.(?:yaml|jsonl):)[\w.-]+:\d+(?=[\s,);:])", "PLACE"),
    (r"[ \t]+$", ""),
    (r"(?<=\S) {2,}(?=\S)", "  "),
)
_VARIES = [(re.compile(pattern, re.M), name) for pattern, name in _VARYING]


@dataclass(frozen=True, slots=True)
class Block:
    """
    One code block.

    Attributes:
        language: the first word after the fence.
        line: where the fence is, from 1.
        above: the line of prose before it.
        notes: what HTML comments right before it say; see `NOTES`.
    """

    language: str
    text: str
    line: int
    above: str
    notes: Mapping[str, str]

    @property
    def file(self) -> str | None:
        """The name that its first line gives it, as in `# prod.yaml`; None if there is none."""
        found = re.match(r"(?:#|--) (\S+\.\w+)$", self.text, re.M)
        return found[1] if found else None


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a block, and what is shown below it."""

    line: str
    shown: str = ""


def read(document: Path) -> list[Block]:
    """Return the blocks of a document in Markdown, in order. Raise `ValueError` for a note that nobody knows."""
    text, end, found = document.read_text(), 0, []
    for fence in _FENCE.finditer(text):
        before, end = text[end : fence.start()], fence.end()
        comments = _COMMENTS.search(before)
        assert comments is not None  # perhaps none
        notes = {each["key"]: textwrap.dedent(each["value"] or "").strip() for each in _COMMENT.finditer(comments[0])}
        if not notes.keys() <= NOTES:
            raise ValueError(f"{document}: {', '.join(notes.keys() - NOTES)}: expected one of {', '.join(NOTES)}")
        prose = before[: comments.start()].rstrip().rpartition("\n")[2]
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(fence["language"], textwrap.dedent(fence["text"]), line, prose, notes))
    return found


def commands(block: Block) -> list[Command]:
    """Return what a block of `console` or `sh` is to run; in the former a command begins with `$ `."""
    text = block.text.replace("\\\n", "")
    if block.language != "console":
        return [Command(line) for line in text.splitlines() if line and not line.startswith("#")]
    if not text.startswith("$ "):
        raise ValueError(f"line {block.line}: a block of console begins with `$ `")
    parts = re.split(r"^\$ ", text, flags=re.M)[1:]
    return [Command(line, shown) for line, _, shown in (part.partition("\n") for part in parts)]


def plain(text: str) -> str:
    """Return a text without what is otherwise each time: ids, times, places, rates, and how wide these make it."""
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


def alike(shown: str, printed: str, *, among: bool = False) -> bool:
    """
    Return whether a document shows what was printed, apart from what varies.

    Args:
        shown: in it `…` stands for anything on its line, and on a line of its own for any lines.
        among: take it if the lines are printed among others, or within them, in their order.
    """
    between, beside = r"(?:.*\n)*?", ".*" if among else ""
    lines = [
        between if line.strip() == "…" else beside + ".*?".join(map(re.escape, line.split("…"))) + beside + "\n"
        for line in plain(shown).splitlines()
        if line.strip()
    ]
    pattern = (between if among else "").join(["", *lines, ""])
    kept = "".join(f"{line}\n" for line in plain(printed).splitlines() if line.strip())
    return re.fullmatch(pattern, kept) is not None
