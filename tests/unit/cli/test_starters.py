"""`runner init` writes a configuration that is right, whatever it is made of, and that editors know."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from runner.cli.program import run
from runner.cli.starters import PARTS, starter
from runner.config import advice, load_config

CHOICES = [(), *itertools.combinations(PARTS, 1), *itertools.combinations(PARTS, 2), tuple(PARTS)[1:]]


@pytest.mark.parametrize("parts", [each for each in CHOICES if not {"sqlite", "postgres"} <= set(each)], ids="+".join)
def test_every_starter_is_right_and_has_no_warning(parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "runner.yaml").write_text(starter(parts))
    config = load_config(tmp_path / "runner.yaml", {})
    assert advice(config) == []
    assert config.storage.dsn.scheme == ("postgresql" if "postgres" in parts else "sqlite")
    kinds = {plugin.kind for plugin in config.sinks.values()}
    assert ("webhook" in kinds, "python" in kinds) == ("webhook" in parts, "python" in parts)
    assert (config.api is not None, bool(config.schedules)) == ("api" in parts, "schedules" in parts)
    wakes = "nats" in [plugin.kind for plugin in config.strategies]
    assert wakes == bool({"nats", "jetstream"} & set(parts))


def test_help_lists_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert [name for name, what in PARTS.items() if f"{name} {what}" not in shown] == []


def test_a_part_that_is_not_there_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "--from", "sqlite+redis"]) == 2
    assert "unknown part 'redis', expected one or more of: sqlite, postgres, nats" in capsys.readouterr().err
    assert run(["init", "--from", "sqlite+postgres"]) == 2
    assert "choose one" in capsys.readouterr().err


class Completion:
    """What a real bash offers for a line, after it has loaded the script."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "runner").write_text(f'#!/bin/sh\nexec {sys.executable} -m runner "$@"\n')
        (directory / "runner").chmod(0o755)

    def of(self, *words: str) -> list[str]:
        script = (
            'eval "$(runner completion bash)"; declare -F _runner_completion >/dev/null || exit 9; '
            f"COMP_WORDS=({' '.join(words)} ''); COMP_WORDS=(\"${{COMP_WORDS[@]:0:{len(words)}}}\"); "
            f"COMP_CWORD={len(words) - 1}; _runner_completion runner; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
        env = {**os.environ, "PATH": f"{self._directory}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "--norc", "-c", script], cwd=self._directory, env=env, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_options_and_names_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "runner.yaml").write_text(starter(["webhook", "schedules"]))
    bash = Completion(tmp_path)
    assert bash.of("runner", "sub") == ["subscriptions"]
    assert bash.of("runner", "init", "--fr") == ["--from"]
    assert bash.of("runner", "subscriptions", "pause", "o") == ["orders-to-crm"]
    assert bash.of("runner", "subscriptions", "pause", "-c", "nosuch.yaml", "o") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert f"_RUNNER_COMPLETE={shell}_complete" in capsys.readouterr().out


class Editor:
    """An editor, as yaml-language-server sees it: JSON-RPC over its standard streams."""

    def __init__(self, server: Path) -> None:
        self._process = subprocess.Popen(
            [str(server), "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        self._ids = itertools.count(1)

    def send(self, method: str, params: dict[str, Any], *, answered: bool = False) -> Any:
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params}
        if answered:
            message["id"] = next(self._ids)
        self._write(message)
        return self.wait(lambda each: each.get("id") == message["id"] and "result" in each) if answered else None

    def wait(self, wanted: Any) -> dict[str, Any]:
        """Return the first message that is wanted; answer what the server asks meanwhile with nothing."""
        while True:
            length = 0
            while line := self._out.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert length, "the server has ended"
            message: dict[str, Any] = json.loads(self._out.read(length))
            if "id" in message and "method" in message:
                items = message["params"].get("items", []) if isinstance(message.get("params"), dict) else []
                self._write({"jsonrpc": "2.0", "id": message["id"], "result": [None for _ in items] or None})
            if wanted(message):
                return message

    def faults(self, file: Path) -> list[str]:
        document = {"uri": file.as_uri(), "languageId": "yaml", "version": 1, "text": file.read_text()}
        self.send("textDocument/didOpen", {"textDocument": document})
        said = self.wait(
            lambda each: (
                each.get("method") == "textDocument/publishDiagnostics" and each["params"]["uri"] == document["uri"]
            )
        )
        return [each["message"] for each in said["params"]["diagnostics"]]

    def offers(self, file: Path, line: int, character: int) -> list[str]:
        place = {"textDocument": {"uri": file.as_uri()}, "position": {"line": line, "character": character}}
        found = self.send("textDocument/completion", place, answered=True)["result"]
        return [each["label"] for each in (found["items"] if isinstance(found, dict) else found or [])]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._in.close()
        self._out.close()

    def _write(self, message: dict[str, Any]) -> None:
        content = json.dumps(message).encode()
        self._in.write(b"Content-Length: %d\r\n\r\n%b" % (len(content), content))
        self._in.flush()


def test_an_editor_completes_and_checks_what_init_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real yaml-language-server."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no Node.js")
    package = [
        "npm",
        "install",
        "--silent",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "yaml-language-server@1.19.2",
    ]
    if subprocess.run(package, cwd=tmp_path, capture_output=True, timeout=120).returncode:
        pytest.skip("the registry of npm cannot be reached")
    monkeypatch.chdir(tmp_path)
    assert run(["init", "--from", "postgres+nats+webhook+schedules+api"]) == 0
    faulty, started = tmp_path / "faulty.yaml", tmp_path / "started.yaml"
    first = starter().partition("\n")[0]
    faulty.write_text(
        f"{first}\ndeployment_id: d\nstorage: {{dsn: 'sqlite:///x.db'}}\nworker: {{batch: many, bacth: 1}}\n"
    )
    started.write_text(f"{first}\ndeployment_id: d\nstorage:\n  ds\n")
    editor = Editor(tmp_path / "node_modules/.bin/yaml-language-server")
    try:
        editor.send("initialize", {"processId": None, "rootUri": None, "capabilities": {}}, answered=True)
        editor.send("initialized", {})
        assert editor.faults(tmp_path / "runner.yaml") == []
        assert any("bacth" in each for each in editor.faults(faulty))
        editor.faults(started)
        assert {"dsn", "password"} <= set(editor.offers(started, 3, 4))
    finally:
        editor.close()
