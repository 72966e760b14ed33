"""
`python -m bench.dashboards`: how soon the pages of a large deployment open, and what open dashboards cost a drain.

First a store is filled with deliveries that are over, in runs and as rows, and every page is opened again and again
through a server that holds nothing from one opening to the next. The statements of a page are counted in the log of
PostgreSQL: the fewest of some openings, because the server has other loops. Then `runner start` drains a backlog, in
turns without a dashboard and beside many, each opened as a browser opens it (`bench.beside`).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from tests.support.postgres import PostgresServer
from tests.support.server import free_port

from .beside import HANDLERS, Drain, compared
from .rows import PER_EVENT, add_recorded

_ROOT = Path(__file__).parents[1]
_SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "8GB", "checkpoint_timeout": "30min"}
_COUNTED = 5  # openings in which the statements of a page are counted
_MOST = {"ms": 300.0, "statements": 5}  # of the overview
_LEAST = 0.95  # of the drain without a dashboard

# Runs a runner whose dashboard looks anew for everybody who opens a page.
_FORGETFUL = """
import sys
from runner.dashboard.glances import Glances

for name in ("first", "report", "series"):
    def anew(self, *args, look=getattr(Glances, name)):
        return look(Glances(self._storage), *args)
    setattr(Glances, name, anew)

from runner.cli import main
sys.argv = ["runner", *sys.argv[1:]]
main()
"""

_FILE = """\
deployment_id: bench
storage: {{dsn: "{dsn}"}}
sinks: {{note: {{python: "handlers:note"}}}}
subscriptions:
{subscriptions}
schedules:
  - {{name: nightly, cron: "0 2 * * *", event: {{type: report.due}}}}
  - {{name: hourly, every: 1h, event: {{type: pulse}}}}
worker: {{enabled: {works}}}
retention: {{delivered: 30d}}
api: {{listen: "127.0.0.1:{port}"}}
log: {{level: error}}
"""

PAGES = {
    "overview": "/",
    "overview, 7 days": "/?range=7d",
    "subscriptions": "/dashboard/subscriptions",
    "one subscription": "/dashboard/subscriptions/s10",
    "events": "/dashboard/events",
    "events of a rare type": "/dashboard/events?type=bench.rare",
    "events of a type that is not there": "/dashboard/events?type=bench.none",
    "events about a subject": "/dashboard/events?subject=order/77",
    "events of an id": "/dashboard/events?id=r17",
    "events of a day": "/dashboard/events?since=3d&until=2d",
    "cancelled events": "/dashboard/events?state=cancelled",
    "one event": "/dashboard/events/3",
    "one delivery": "/dashboard/deliveries/3/s10",
    "pending deliveries": "/dashboard/deliveries?state=pending",
    "delivered": "/dashboard/deliveries?state=delivered",
    "cancelled deliveries": "/dashboard/deliveries?state=cancelled",
    "dead letters": "/dashboard/dead-letters",
    "dead letters of one": "/dashboard/dead-letters?subscription=s10",
    "dead letters of a rare type": "/dashboard/dead-letters?type=bench.none",
    "schedules": "/dashboard/schedules",
    "one schedule": "/dashboard/schedules/nightly",
    "trace": "/dashboard/traces/7",
    "audit": "/dashboard/audit",
    "publish": "/dashboard/publish",
}
"""Every page of the dashboard, and searches."""


@click.command()
@click.option("--deliveries", default=10_000_000, show_default=True, help="Deliveries that are on record.")
@click.option("--openings", default=20, show_default=True, help="Openings of each page; 0 leaves that out.")
@click.option("--dashboards", default=50, show_default=True, help="How many are open beside a drain.")
@click.option("--pairs", default=10, show_default=True, help="Windows without and with them each; 0 leaves that out.")
@click.option("--seconds", default=6.0, show_default=True, help="How long such a window is.")
def main(deliveries: int, openings: int, dashboards: int, pairs: int, seconds: float) -> None:
    """Print one line of JSON for each page, one for the drains, and what misses its target."""
    server = PostgresServer(18, settings=_SETTINGS)
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        directory = Path(name)
        (directory / "handlers.py").write_text(HANDLERS)
        try:
            server.start()
            dsn = server.create_database()
            with _served(directory, dsn, works=False) as (port, _):
                began = time.monotonic()
                asyncio.run(add_recorded(dsn, deliveries))
                took = round(time.monotonic() - began)
                click.echo(
                    json.dumps({"deliveries": deliveries, "events": deliveries // PER_EVENT, "filled_in_s": took})
                )
                if openings:
                    missed += _open_all(server, port, openings)
            if pairs:
                missed += _drain_beside(server, directory, dsn, dashboards, pairs, seconds)
        finally:
            server.discard()
    for each in missed:
        click.echo(f"missed: {each}", err=True)
    sys.exit(1 if missed else 0)


@contextmanager
def _served(directory: Path, dsn: str, *, works: bool) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Serve in a process of its own; give its port, and the process."""
    port = free_port()
    path = directory / "runner.yaml"
    named = "\n".join(
        f'  - {{name: s{number}, types: ["bench.event.*"{", bench.drain" if number == 1 else ""}], sink: note}}'
        for number in range(1, PER_EVENT + 1)
    )
    path.write_text(_FILE.format(dsn=dsn, port=port, works=str(works).lower(), subscriptions=named))
    program = ["-m", "runner"] if works else ["-c", _FORGETFUL]
    command = [sys.executable, "-W", "ignore", *program, "start", "-c", str(path)]
    environment = {"PYTHONPATH": str(_ROOT), "PATH": "/usr/bin:/bin"}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            _wait_until_ready(port, process)
            yield port, process
        finally:
            process.terminate()
            process.wait(60)
            sys.stderr.write("".join(line for line in (directory / "log").open() if "rror" in line))


def _wait_until_ready(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            break
        try:
            if _get(http.client.HTTPConnection("127.0.0.1", port, timeout=5), "/readyz")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


# --- pages ----------------------------------------------------------------------------------------------------------


def _open_all(server: PostgresServer, port: int, openings: int) -> list[str]:
    """Open every page; return what misses its target."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    times: dict[str, list[float]] = {name: [] for name in PAGES}
    for _ in range(openings):
        for name, path in PAGES.items():
            began = time.perf_counter()
            status, _ = _get(connection, path)
            times[name].append(1000 * (time.perf_counter() - began))
            if status != 200:
                raise SystemExit(f"{path} answered {status}")
    statements = _count_all(server, connection)
    missed = []
    for name, taken in times.items():
        taken.sort()
        p50, p99, number = statistics.median(taken), taken[int(len(taken) * 0.99)], statements[name]
        shown = {"p50_ms": round(p50, 1), "p99_ms": round(p99, 1), "least_ms": round(taken[0], 1)}
        click.echo(json.dumps({"page": name, **shown, "statements": number}))
        if name.startswith("overview") and (p99 > _MOST["ms"] or number > _MOST["statements"]):
            missed.append(f"{name}: {p99:.0f} ms, {number} statements")
    return missed


def _count_all(server: PostgresServer, connection: http.client.HTTPConnection) -> dict[str, int]:
    """Return how many statements each page takes, those that begin and end transactions left out."""
    server.psql("ALTER SYSTEM SET log_statement = 'all'")
    server.psql("SELECT pg_reload_conf()")
    log = server.directory / "log"
    counted = {}
    for name, path in PAGES.items():
        numbers = []
        for _ in range(_COUNTED):
            at = log.stat().st_size
            _get(connection, path)
            with log.open(errors="replace") as lines:
                lines.seek(at)
                numbers.append(len(_STATEMENT.findall(lines.read())))
        counted[name] = min(numbers)
    server.psql("ALTER SYSTEM RESET log_statement")
    server.psql("SELECT pg_reload_conf()")
    return counted


_STATEMENT = re.compile(
    r"LOG:  (?:statement|execute [^:]*): (?!BEGIN|COMMIT|ROLLBACK|START|SET|SHOW|RESET|DISCARD)", re.I
)


# --- drains ---------------------------------------------------------------------------------------------------------


def _drain_beside(
    server: PostgresServer, directory: Path, dsn: str, dashboards: int, pairs: int, seconds: float
) -> list[str]:
    """Drain beside open dashboards and without, in turns; return what misses its target."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    with _served(directory, dsn, works=True) as (port, process):
        drain = Drain(port, process, dsn, postmaster)
        found = asyncio.run(compared(drain, dashboards, pairs, seconds))
    click.echo(json.dumps(found))
    ratio = found["ratio"]
    assert isinstance(ratio, float)
    return [f"{dashboards} dashboards: {ratio:.3f} of the drain without"] if ratio < _LEAST else []


if __name__ == "__main__":
    main()
