"""Pasting a document: its blocks, in order, in one shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.support.documents import Block, alike, commands
from tests.support.eventually import PATIENCE
from tests.support.shell import Shell

__all__ = ["Reader"]

_GOES_ON = re.compile(r"runner (?:start|events tail)\b")
# These only look: again and again, until there is what they show.
_LOOKS = re.compile(r"runner (?:why|status|instances|\w+ (?:list|show))\b")
_DIAGRAM = re.compile(r"flowchart|sequenceDiagram|stateDiagram-v2")


class Reader:
    """
    Somebody who pastes a document, in an empty directory.

    A `yaml` block is saved as the file that its first line names, or else as runner.yaml, and checked; one without a
    deployment is part of a file, of which the whole is checked. A `python` block is saved likewise: one with a name is
    imported, another one run. `console` and `sh` are typed, `sql` goes to $DATABASE_URL, and `text` is what was
    printed last.
    """

    def __init__(self, shell: Shell, directory: Path, *, skip: Collection[str] = ()) -> None:
        """Take the notes (see `documents.NOTES`) whose blocks are left out, besides those that say so themselves."""
        self._shell = shell
        self._directory = directory
        self._skip = {"not run", "run by", *skip}
        self._printed = ""

    def paste(self, blocks: Iterable[Block]) -> None:
        """Run the blocks, and end what goes on. Raise `AssertionError` for the first that is not as it is shown."""
        for block in blocks:
            if "first" in block.notes:
                self._run(block.notes["first"])
            if "restarted" in block.notes:
                assert set(self._shell.stop()) <= {0, 130}, self._shell.printed
                self._start(block.notes["restarted"])
            if block.notes.keys() & self._skip:
                continue
            try:
                self._take(block)
            except AssertionError as error:
                raise AssertionError(f"line {block.line}: {error}") from error
        assert set(self._shell.stop()) <= {0, 130}, self._shell.printed
        assert "Traceback" not in self._shell.printed

    def _take(self, block: Block) -> None:
        match block.language:
            case "yaml":
                self._check(block)
            case "python":
                self._program(block)
            case "console" | "sh":
                self._type(block)
            case "sql":
                file = self._save(block.file or "block.sql", block.text)
                self._run(f'psql "$DATABASE_URL" --quiet --set ON_ERROR_STOP=1 --file {file}')
            case "text":
                self._shell.wait_for(
                    lambda: alike(block.text, self._printed + self._shell.printed, among=True), block.text
                )
            case "json":
                json.loads(block.text)
            case "mermaid":
                assert _DIAGRAM.match(block.text), block.text
            case _:
                raise AssertionError(f"nobody knows how to run {block.language!r}")

    def _check(self, block: Block) -> None:
        content = yaml.safe_load(block.text)
        if "deployment_id" in content:
            file = self._save(block.file or "runner.yaml", block.text)
        else:
            if block.file is not None:
                self._save(block.file, block.text)
            file = self._save("part.yaml", yaml.safe_dump(_whole(content)))
        if "faulty" not in block.notes:
            self._run(f"runner check -c {file}")
            assert "warning" not in self._printed, self._printed

    def _program(self, block: Block) -> None:
        file = self._save(block.file or "program.py", block.text)
        self._run(f"python {file}" if block.file is None else f"python -c 'import {file.removesuffix('.py')}'")

    def _type(self, block: Block) -> None:
        typed = commands(block)
        for command, following in zip(typed, [*typed[1:], None], strict=True):
            if _GOES_ON.match(command.line):
                self._start(command.line)
                shown = command.shown
                self._shell.wait_for(lambda shown=shown: alike(shown, self._shell.printed, among=True), shown)  # type: ignore[misc]
            else:
                fails = following is not None and following.line == "echo $?"
                self._run(command.line, command.shown or None, fails=fails)

    def _start(self, command: str) -> None:
        """Start what goes on, and wait until a runner works."""
        self._shell.start(command)
        if " start" in command:
            self._shell.wait_for(lambda: self._shell.run('grep -q "publish one:" "$PRINTED"').code == 0, command)

    def _run(self, command: str, shown: str | None = None, *, fails: bool = False) -> None:
        """Run a command, and expect what is shown, soon if it only looks; None is anything."""

        def done() -> bool:
            ended = self._shell.run(command)
            self._printed = ended.printed
            assert "Traceback" not in ended.printed, ended.printed
            good = fails or ended.code == 0
            return good and (shown is None or alike(shown, ended.printed))

        try:
            if _LOOKS.match(command):
                self._shell.wait_for(done, command, PATIENCE)
            else:
                assert done()
        except AssertionError as error:
            seen = f"{command}\n--- printed\n{self._printed}\n--- shown\n{shown}\n--- what goes on printed\n"
            raise AssertionError(f"{seen}{self._shell.printed[-5_000:]}") from error

    def _save(self, name: str, text: str) -> str:
        path = self._directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return shlex.quote(name)


def _whole(part: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with a part of one in it, and what that names and does not have."""
    named = [each[key] for each in part.get("subscriptions", []) for key in ("sink", "dead_letter") if key in each]
    sinks = {**dict.fromkeys(named, "stdout"), **part.get("sinks", {})}
    subscriptions = part.get("subscriptions") or [{"name": name, "sink": name} for name in sinks]
    whole = {"deployment_id": "part", "storage": {"dsn": "sqlite:///part.db"}}
    return {**whole, **part, "sinks": sinks, "subscriptions": subscriptions}
