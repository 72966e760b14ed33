from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from runner import cli
from runner.cli import program
from runner.cli.program import PROGRAM, run
from runner.errors import ConfigError, ForeignDeployment, RunnerError, StorageUnavailable
from tests.support.reference.verbs import commands

HEAVY = {
    "aiohappyeyeballs",
    "aiosqlite",
    "alembic",
    "asyncpg",
    "nats",
    "orjson",
    "pydantic",
    "rich",
    "sqlalchemy",
    "structlog",
    "yaml",
}
ROOT = Path(__file__).parents[3]


ALL = dict(commands(PROGRAM))


def examples(text: str) -> list[str]:
    """Every command line of ours in a text, from the word `runner` to the end of that command."""
    found = re.findall(r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*runner (.+)$", text, re.MULTILINE)
    found += re.findall(r"\| runner (.+)$", text, re.MULTILINE)
    return [re.split(r" [|>] ", line)[0] for line in found]


def parse(arguments: list[str]) -> None:
    """Parse a command line down to its last option, without running it."""
    command: click.Command = PROGRAM
    context = command.make_context("runner", list(arguments))
    while isinstance(command, click.Group):
        name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert name is not None
        assert sub is not None
        command = sub
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_help_has_examples_and_every_example_parses(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RUNNER_CONFIG", "runner.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "events.jsonl").touch()
    (tmp_path / "crm.yaml").touch()
    lines = examples(ALL[path].help or "")
    assert lines
    for line in lines:
        assert line.startswith(" ".join(path)) or "|" in (ALL[path].help or "")
        parse(shlex.split(line))


@pytest.mark.parametrize("document", ["operations", "status", "database"])
def test_the_examples_of_a_document_parse(document: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RUNNER_CONFIG", "runner.yaml")
    text = (ROOT / "docs" / f"{document}.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"(?:--file|subscriptions put) (\S+)", text):
        (tmp_path / name).touch()
    lines = examples(text)
    assert len(lines) > 5
    for line in lines:
        parse(shlex.split(line, comments=True))


@pytest.mark.parametrize("arguments", [["-h"], ["publish", "--help"], ["events", "list", "-h"]], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from runner.cli.program import run; code = run(sys.argv[1:]);"
        "print(code, *sorted(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True, timeout=30
    )
    code, *loaded = result.stderr.split()
    assert code == "0"
    assert "Usage: runner" in result.stdout
    assert "-h, --help" in result.stdout
    assert HEAVY.isdisjoint(loaded)


def test_help_lists_every_verb_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:")[1].splitlines()
    verbs = dict(line.split(maxsplit=1) for line in listed if line.strip())
    assert list(verbs) == list(program.VERBS)


def test_an_interrupt_while_the_program_is_loaded_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "runner.cli.program", Loading("runner.cli.program"))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"runner \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["start"], "RUNNER_CONFIG"),
        (["events", "list"], "RUNNER_CONFIG"),
        (["pubish"], "No such command 'pubish'. Did you mean 'publish'?"),
        (["events", "top"], "No such command 'top'"),
        (["events", "lsit"], "No such command 'lsit'. Did you mean 'list'?"),
        (["events", "list", "--sicne", "1h"], "Did you mean"),
        (["publish", "-c", "x"], "TYPE"),
        (["publish", "-c", "x", "a.b", "--file", "-"], "TYPE"),
        (["publish", "-c", "x", ""], "TYPE must not be empty"),
        (["publish", "-c", "x", "a.b", "--source", ""], "--source must not be empty"),
        (["deliveries", "retry", "-c", "x", "--state", "leased"], "dead"),
        (["deliveries", "cancel", "-c", "x", "--state", "dead"], "pending"),
        (["publish", "-c", "x", "--file", "-", "--source", "/s"], "--file"),
        (["publish", "-c", "x", "a.b", "--delay", "2s", "--deliver-at", "2026-01-31T12:00:00Z"], "not both"),
        (["publish", "-c", "x", "a.b", "--delay", "soon"], "duration"),
        (["publish", "-c", "x", "a.b", "--deliver-at", "2026-01-31T12:00:00"], "offset"),
        (["publish", "-c", "x", "a.b", "--data", "{"], "not JSON"),
        (["publish", "-c", "x", "a.b", "--data", "@nowhere"], "cannot read nowhere"),
        (["publish", "-c", "x", "--file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["deliveries", "retry", "-c", "x"], "--state"),
        (["deliveries", "cancel", "-c", "x", "12"], "EVENT SUBSCRIPTION"),
        (["deliveries", "retry", "-c", "x", "12", "crm", "--state", "dead"], "not both"),
        (["deliveries", "list", "-c", "x", "--state", "deadly"], "dead"),
        (["events", "list", "-c", "x", "--since", "yesterday"], "1h"),
        (["events", "list", "-c", "x", "--state", "dead"], "scheduled"),
        (["deliveries", "list", "-c", "x", "--sort", "age"], "due"),
        (["migrate", "-c", "x", "--status", "--sql"], "give one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_exits_with_2_and_says_what_is_expected(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNNER_CONFIG", raising=False)
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert expected in output.err


class TestTheFile:
    """Which configuration a verb reads, and how it ends without one."""

    @pytest.fixture(autouse=True)
    def directory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.delenv("RUNNER_CONFIG", raising=False)
        monkeypatch.chdir(tmp_path)
        for name in ("runner", "named", "given"):
            text = f"deployment_id: {name}\nstorage: {{dsn: sqlite:///{name}.db}}\n"
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path

    @staticmethod
    def shown(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
        assert run(["config", "show", *arguments]) == 0
        return capsys.readouterr().out.split()[1]

    def test_is_the_nearest_that_is_given(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.shown(capsys=capsys) == "runner"
        monkeypatch.setenv("RUNNER_CONFIG", "named.yaml")
        assert self.shown(capsys=capsys) == "named"
        assert self.shown("-c", "given.yaml", capsys=capsys) == "given"

    def test_there_is_none(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (directory / "runner.yaml").unlink()
        assert run(["check"]) == 2
        assert "no ./runner.yaml here" in capsys.readouterr().err

    def test_missing_or_unreadable_it_is_a_wrong_configuration(
        self, directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access, opened = os.access, Path.open

        def refuse(path: Path, *args: object, **options: object) -> object:
            if path.name == "given.yaml":
                raise PermissionError(13, "Permission denied")
            return opened(path, *args, **options)  # type: ignore[call-overload]  # whatever it is called with

        monkeypatch.setattr(os, "access", lambda path, mode: "given" not in str(path) and access(path, mode))
        monkeypatch.setattr(Path, "open", refuse)  # root may read all
        for name, said in (("given.yaml", "cannot be read: Permission denied"), ("none.yaml", "no such file")):
            assert run(["check", "-c", name]) == 78
            assert said in capsys.readouterr().err


AWAY = "  cure: see that the database runs, and that storage.dsn leads to it: runner doctor\n"


class Failing(click.Command):
    """A verb that ends as a test wants."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("failing")
        self.error = error

    def invoke(self, ctx: click.Context) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RunnerError("no luck"), 1, "Error: no luck\n"),
        (ConfigError("a.yaml:1:2: x: bad", "a.yaml:3:4: y: worse"), 78, "a.yaml:1:2: x: bad\na.yaml:3:4: y: worse\n"),
        (ForeignDeployment("taken"), 78, "Error: taken\n"),
        (StorageUnavailable("gone"), 69, f"Error: gone\n{AWAY}"),
        (StorageUnavailable("a:1: [Errno 111] Connection refused"), 69, f"Error: a:1: connection refused\n{AWAY}"),
        (
            StorageUnavailable("a:1: [Errno -2] Name or service not known"),
            69,
            f"Error: a:1: name or service not known\n{AWAY}",
        ),
        (
            RunnerError(
                "a:1: [Errno 111] Connect call failed ('::1', 1, 0, 0); b:1: [Errno 104] Connection reset by peer"
            ),
            1,
            "Error: a:1: connection refused; b:1: connection reset by peer\n",
        ),
        (KeyboardInterrupt(), 130, "\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_how_a_verb_ends_decides_the_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PROGRAM, "get_command", lambda ctx, name: Failing(error))
    assert run(["start"]) == code
    assert capsys.readouterr().err == said


def test_an_unforeseen_error_is_one_line_without_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PROGRAM, "get_command", lambda ctx, name: Failing(ValueError("postgresql://me:secret@db")))
    monkeypatch.delenv("RUNNER_DEBUG", raising=False)
    assert run(["start"]) == 1
    message = capsys.readouterr().err
    assert re.fullmatch(r"Error: unexpected ValueError at test_program\.py:\d+; RUNNER_DEBUG=1 .*\n", message)
    monkeypatch.setenv("RUNNER_DEBUG", "1")
    assert run(["start"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_output_that_takes_no_more_is_named() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "runner", "config", "schema"]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False, cwd=ROOT
        )
    assert done.returncode == 1
    assert done.stderr == "Error: cannot write to standard output: No space left on device\n"


def test_a_reader_that_leaves_early_is_no_error_worth_a_word() -> None:
    script = f"{shlex.quote(sys.executable)} -m runner --help | true"
    result = subprocess.run(script, shell=True, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert result.stderr == ""
