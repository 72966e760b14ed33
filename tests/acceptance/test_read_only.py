"""`runner start` on PostgreSQL writes no file, so that its root file system may be read-only."""

from __future__ import annotations

from pathlib import Path

from tests.support.http import ask
from tests.support.process import RunnerProcess

from .deployment import Deployment

# What Python opens, makes, moves or removes;
_WATCHED = """
import os, sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate",
           "tempfile.mkstemp", "tempfile.mkdtemp", "sqlite3.connect"}

def hook(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)) and args[2] and args[2] & WRITES or event in CHANGES:
        os.write(2, f"wrote: {event} {args[0]!r}\\n".encode())

sys.addaudithook(hook)
open(os.environ["SEEN"], "w").close()

from runner.cli import main

main()
"""


def test_nothing_is_written_but_to_the_database(tables_dsn: str, tmp_path: Path) -> None:
    """Started, published to, scraped, looked at, reloaded, drained."""
    deployment = Deployment(tmp_path, tables_dsn)
    deployment.write(more="api: {listen: '127.0.0.1:0'}\n")
    (tmp_path / "handlers.py").write_text("def fail(*_): ...\nwait = fail\n")
    (tmp_path / "watched.py").write_text(_WATCHED)
    seen = tmp_path / "seen"  # a file that is written, to see that it would be told
    env = {"PYTHONDONTWRITEBYTECODE": "1", "SEEN": str(seen)}  # the image has compiled everything when it was built
    with RunnerProcess("start", "-c", deployment.path, module="watched", cwd=tmp_path, env=env) as runner:
        url = "http" + runner.wait_for_line(r"listening.*http://").rpartition("'http")[2].rstrip("']")
        runner.wait_for_line("publish one:")
        deployment.cli("publish", "a.b")
        runner.wait_for_line(r"^a\.b ")
        for path in ("/metrics", "/readyz", "/", "/openapi.json"):
            assert ask(url, path).status == 200
        assert ask(url, "/reload", method="POST").status == 200
        assert runner.stop() == 0
    assert [line for line in runner.stderr if line.startswith("wrote: ")] == [f"wrote: open {str(seen)!r}"]
