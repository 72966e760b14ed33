"""docs/first-webhook.md does what it says, with the receiver in either language."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.eventually import PATIENCE
from tests.support.process import RunnerProcess
from tests.support.server import free_port

PAGE = (Path(__file__).parents[2] / "docs" / "first-webhook.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[MAKE_SECRET, PUBLISH, FORGE] = [text for language, text in BLOCKS if language == "sh"]
RECEIVERS = {
    "python": ("receiver.py", [sys.executable, "-u"]),
    "javascript": ("receiver.mjs", ["node"]),
}


class Page:
    """The page, with ports that are free here."""

    def __init__(self, directory: Path) -> None:
        self._ports = {"8080": str(free_port()), "9000": str(free_port())}
        self._directory = directory
        secret = self.shell(MAKE_SECRET + 'printf %s "$HOOK_SECRET"')
        assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", secret)
        self.env = {"HOOK_SECRET": secret}
        self.save("runner.yaml", "yaml")

    def text(self, text: str) -> str:
        return re.sub("8080|9000", lambda found: self._ports[found[0]], text)

    def save(self, name: str, language: str) -> None:
        [block] = [text for each, text in BLOCKS if each == language]
        (self._directory / name).write_text(self.text(block))

    def shell(self, command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", self.text(command)],
            cwd=self._directory,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return done.stdout


@pytest.mark.parametrize("language", RECEIVERS)
def test_it_does_what_it_says(language: str, tmp_path: Path) -> None:
    name, command = RECEIVERS[language]
    if shutil.which(command[0]) is None:
        pytest.skip("there is no Node.js here")
    page = Page(tmp_path)
    page.save(name, language)
    with (
        RunnerProcess("start", env=page.env, cwd=tmp_path) as bus,
        subprocess.Popen(
            [*command, name], cwd=tmp_path, env=os.environ | page.env, stdout=subprocess.PIPE, text=True
        ) as receiver,
    ):
        try:
            bus.wait_for_line("started")
            answer = json.loads(re.findall(r"The answer, `(.*?)`", PAGE)[0])
            assert json.loads(page.shell(PUBLISH)) == answer
            assert receiver.stdout is not None
            assert receiver.stdout.readline() == "order.created\n"
            assert json.loads(page.shell(PUBLISH)) == answer | {"duplicate": True}
            assert " 401 " in page.shell(FORGE).splitlines()[0]
            assert receiver.stdout.readline() == "forged\n"
        finally:
            receiver.kill()
