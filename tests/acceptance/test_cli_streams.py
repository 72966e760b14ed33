"""What verbs do with streams, signals, terminals and arguments that are not as one would wish them."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.process import COMMAND, environment

from .deployment import Deployment

FULL = (1, "Error: cannot write to standard output: No space left on device\n")
UNTIL = "until [ -s delivered ]; do sleep 0.1; done"
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]
LINE = '{{"specversion": "1.0", "id": "{}", "source": "/s", "type": "t"}}\n'
HANDLED = """\
deployment_id: shop
storage: {dsn: "sqlite:///runner.db"}
sinks: {function: {python: "handlers:handle"}}
subscriptions: [{name: everything, types: ["*"], sink: function}]
"""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(tmp_path, "sqlite:///runner.db")
    made.write()
    return made


def shell(deployment: Deployment, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in the directory of the deployment, in which `runner` is the command."""
    command = f'runner() {{ {" ".join(COMMAND)} "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", command],
        env=environment({"RUNNER_CONFIG": "runner.yaml", **env}),
        cwd=deployment.directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


class TestClosedStreams:
    @pytest.mark.parametrize(
        "redirection", [">&-", ">&- 2>&-", ">/dev/full", "2>&-", "2>/dev/full", "<&- >&- 2>&-", "| true"]
    )
    def test_a_publish_does_not_fail_once_the_event_is_recorded(self, deployment: Deployment, redirection: str) -> None:
        done = shell(deployment, f"set -o pipefail; runner publish a.b --id 7 {redirection}")
        assert done.returncode == 0, done.stderr
        assert [event["event"]["id"] for event in deployment.json("events", "list")] == ["7"]
        assert "Error" not in done.stderr

    def test_a_file_is_published_to_its_end_though_nobody_reads_the_receipts(self, deployment: Deployment) -> None:
        lines = "".join(LINE.format(number) for number in range(1200))
        (deployment.directory / "events.jsonl").write_text(lines)
        done = shell(deployment, "runner publish --json --file events.jsonl | head -1")
        assert done.stderr == "1200 new, 0 already there\n"
        assert len(deployment.json("events", "list", "--limit", "2000")) == 1200

    def test_who_has_read_enough_hears_of_no_error(self, deployment: Deployment) -> None:
        deployment.cli("publish", "a.b")
        for _ in range(3):
            done = shell(deployment, "set -o pipefail; runner events list --json --limit 1000 | true")
            assert (done.returncode, done.stderr) == (0, "")

    def test_an_export_that_is_cut_off_is_no_error_either(self, deployment: Deployment) -> None:
        lines = "".join(LINE.format(number) for number in range(1200))
        (deployment.directory / "events.jsonl").write_text(lines)
        deployment.cli("publish", "--file", "events.jsonl")
        done = shell(deployment, "set -o pipefail; runner events export | head -1 | wc -l")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")

    def test_a_full_disk_is_an_error_where_the_output_is_what_was_asked_for(self, deployment: Deployment) -> None:
        deployment.cli("publish", "a.b")
        done = shell(deployment, "runner events list >/dev/full")
        assert (done.returncode, done.stderr) == (
            1,
            "Error: cannot write to standard output: No space left on device\n",
        )

    @pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-", "2>/dev/full", "2> >(true)"])
    def test_a_runner_delivers_and_drains_whatever_its_log_is(self, deployment: Deployment, redirection: str) -> None:
        (deployment.directory / "handlers.py").write_text("def handle(event): open('delivered', 'a').write(event.id)\n")
        deployment.path.write_text(HANDLED)
        deployment.cli("publish", "a.b", "--id", "7")
        done = shell(
            deployment,
            f"{' '.join(COMMAND)} start {redirection} & {UNTIL}; kill $!; wait $!",
        )
        assert done.returncode == 0
        assert (deployment.directory / "delivered").read_text() == "7"

    def test_nothing_that_is_opened_takes_the_place_of_a_closed_stream(self, deployment: Deployment) -> None:
        handlers = "import os\ndef handle(event): os.write(2, b'x' * 4096); open('delivered', 'w').write(event.id)\n"
        (deployment.directory / "handlers.py").write_text(handlers)
        deployment.path.write_text(HANDLED)
        deployment.cli("publish", "a.b", "--id", "7")
        shell(
            deployment,
            f"{' '.join(COMMAND)} start >&- 2>&- & until [ -s delivered ]; do sleep 0.1; done; kill $!; wait",
        )
        assert [event["event"]["id"] for event in deployment.json("events", "list")] == ["7"]


class TestSignals:
    @pytest.mark.parametrize("verb", ["events tail", "publish --file -", "bench --events 1000000"])
    def test_a_long_verb_ends_on_sigterm(self, deployment: Deployment, verb: str) -> None:
        deployment.cli("publish", "a.b")
        process = subprocess.Popen(
            [*COMMAND, *verb.split()],
            env=environment({"RUNNER_CONFIG": "runner.yaml"}),
            cwd=deployment.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            wait_for_handler(process.pid)
            process.terminate()
            _, complaint = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in complaint

    @pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="needs a PID namespace of its own")
    @pytest.mark.parametrize("verb", ["events tail", "publish --file -"])
    def test_also_as_the_first_process_of_a_container(self, deployment: Deployment, verb: str) -> None:
        deployment.cli("publish", "a.b")
        process = subprocess.Popen(
            [*UNSHARE, *COMMAND, *verb.split()],
            env=environment({"RUNNER_CONFIG": "runner.yaml"}),
            cwd=deployment.directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with process:
            [first] = next(filter(None, iter(lambda: psutil.Process(process.pid).children(), None)))
            wait_for_handler(first.pid)
            first.terminate()
            assert process.wait(30) == 130


def wait_for_handler(pid: int) -> None:
    """Return once the process catches SIGTERM."""
    bit = 1 << (signal.SIGTERM - 1)
    while True:
        status = Path(f"/proc/{pid}/status").read_text()
        [caught] = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")]
        if caught & bit:
            return


class TestTerminals:
    def on_terminal(self, deployment: Deployment, *args: str, **env: str) -> str:
        """Return everything that a command writes to a terminal."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, *args],
            env={
                name: value
                for name, value in environment(env | {"RUNNER_CONFIG": "runner.yaml"}).items()
                if name != "NO_COLOR"
            },
            cwd=deployment.directory,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        output = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(ours, 4096):
                output += chunk
        os.close(ours)
        process.wait(30)
        return output.decode(errors="surrogateescape")

    def test_a_dumb_one_gets_plain_text(self, deployment: Deployment) -> None:
        deployment.cli("publish", "a.b")
        for args in (("events", "list"), ("publish", "a.b"), ("check",), ("publish",), ("prune", "--dry-run")):
            assert "\x1b" not in self.on_terminal(deployment, *args, TERM="dumb")
        assert "\x1b" in self.on_terminal(deployment, "events", "list", TERM="xterm")

    @pytest.mark.timeout(600)  # sixteen commands, one after the other
    def test_no_strangers_text_steers_it(self, deployment: Deployment) -> None:
        escape = "\x1b]0;owned\x07\x9b2J\u202e"
        deployment.cli("publish", "a.b", "--id", "7")
        (deployment.directory / f"bad{escape}.yaml").write_text(f'"{escape}": 1\ndeployment_id: [')
        (deployment.directory / "twice.jsonl").write_text('{"a\\u001b]0;x\\u0007": 1, "a\\u001b]0;x\\u0007": 2}\n')
        for args in (
            ("events", "show", escape),
            ("events", "list", "--since", escape),
            ("publish", "a.b", "--id", escape),
            ("publish", escape),
            ("publish", "a.b", "--subject", "\x9b2J\u202e", "--dry-run"),
            ("publish", "--file", f"{escape}.jsonl"),
            ("publish", "--file", "twice.jsonl"),
            ("publish", "a.b", "--data", f"@{escape}"),
            ("subscriptions", "pause", escape),
            ("deliveries", "show", "7", escape),
            ("check", "-c", f"bad{escape}.yaml"),
            ("check", "-c", f"none{escape}.yaml"),
            ("init", f"none{escape}/x.yaml"),
            ("init", f"new{escape}.yaml"),
            (escape,),
            ("events", f"--{escape}"),
        ):
            output = self.on_terminal(deployment, *args, TERM="dumb")
            assert output
            assert not set(output) & {"\x1b", "\x07", "\x9b", "\u202e"}, (args, output)


class TestArguments:
    @pytest.mark.parametrize(
        "arguments",
        [
            "publish $'a\\xff'",
            "publish a.b --id $'\\xff'",
            "publish a.b --data $'\"\\xff\"'",
            "events show $'\\xff'",
            "events list --type $'\\xff'",
            "events list --since $'\\xff'",
            "deliveries list --subscription $'\\xff'",
            "subscriptions pause $'\\xff'",
            "$'\\xff'",
        ],
    )
    def test_what_is_not_utf8_is_refused_by_its_place(self, deployment: Deployment, arguments: str) -> None:
        done = shell(deployment, f"runner {arguments}")
        assert done.returncode == 2
        assert "is not UTF-8: " in done.stderr
        assert "\\udcff" in done.stderr

    def test_a_character_that_the_locale_has_not_fails_nothing(self, deployment: Deployment) -> None:
        done = shell(deployment, "runner publish a.b --id Zürich-漢", PYTHONIOENCODING="latin-1")
        assert done.returncode == 0, done.stderr
        assert "rich-\\u6f22  seq " in done.stdout
