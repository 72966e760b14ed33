from __future__ import annotations

import errno
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.cli.benchmark.place import throwaway
from runner.config import load_config
from runner.errors import StorageError
from tests.support.eventually import eventually
from tests.support.nats import NatsServer
from tests.support.postgres import PostgresServer

from .deployment import Deployment

NAMES = [
    "floor",
    "publish_batch",
    "drain",
    "fan_out_3",
    "latency_p50",
    "latency_p99",
    "latency_signalled_p50",
    "latency_signalled_p99",
    "publish_1",
    "publish_16",
    "publish_200",
]
FEW = ("--events", "200", "--subscriptions", "3")

Left = Callable[[], list[str]]


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.write()
    return made


@pytest.fixture
def left(deployment: Deployment, postgres: PostgresServer) -> Left:
    """What measurements have made and not removed."""
    if deployment.dsn.startswith("sqlite"):
        return lambda: _beside(deployment)
    query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'runner_bench_%'"
    return lambda: postgres.psql(query, deployment.dsn).splitlines()


def test_it_measures_beside_the_tables_of_the_deployment(deployment: Deployment, left: Left) -> None:
    deployment.cli("migrate")
    deployment.cli("publish", "broken.one")
    measures = deployment.json("bench", *FEW)
    assert [measure["name"] for measure in measures] == NAMES
    floor = measures[0]
    assert floor["ratio"] == 1
    assert floor["unit"] == "ms"
    for measure in measures:
        assert measure.keys() == {"name", "value", "unit", "ratio"}
        assert measure["value"] > 0
        expected = measure["value"] / floor["value"]
        if measure["unit"] != "ms":
            expected = measure["value"] * floor["value"] / 1000
        assert measure["ratio"] == pytest.approx(expected)
    assert left() == []
    [event] = deployment.json("events", "list")
    assert (event["event"]["type"], event["state"]) == ("broken.one", "queued")
    assert deployment.json("subscriptions", "list") == []
    assert deployment.json("instances") == []


def test_people_get_a_table(deployment: Deployment, left: Left) -> None:
    output, complaint = deployment.cli("bench", *FEW)
    header, *rows = output.splitlines()
    assert re.fullmatch(r"MEASURE +VALUE +UNIT +VS FLOOR", header)
    assert len(rows) == len(NAMES)
    assert rows[0].startswith("one INSERT and its commit")
    assert complaint == ""
    assert left() == []


def test_what_is_kept_can_be_looked_at_and_removed(
    deployment: Deployment, left: Left, postgres: PostgresServer
) -> None:
    _, complaint = deployment.cli("bench", *FEW, "--keep")
    found = re.search(r"^kept: deployment (bench-\S+); to remove it: (.+)$", complaint, re.MULTILINE)
    assert found
    if deployment.dsn.startswith("sqlite"):
        [name] = left()
        storage = f'{{dsn: "sqlite:///{name}/runner.db"}}'
        assert found[2] == f"rm -r {deployment.directory / name}"
    else:
        [name] = left()
        storage = f'{{dsn: "{deployment.dsn}", schema: {name}}}'
    other = deployment.directory / "kept.yaml"
    other.write_text(f"deployment_id: {found[1]}\nstorage: {storage}\n")
    assert deployment.json("events", "list", "-c", other, "--type", "bench.*", "--limit", "1")
    if not deployment.dsn.startswith("sqlite"):
        postgres.psql(found[2], deployment.dsn)
        assert left() == []


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGINT, None), (signal.SIGTERM, "floor"), (signal.SIGHUP, "publish_batch")],
    ids=["when the place is there", "publishing", "delivering"],
)
async def test_an_interruption_leaves_nothing_behind(
    deployment: Deployment, left: Left, number: signal.Signals, after: str | None
) -> None:
    with deployment.process("bench", "--events", "50000", "--json") as process:
        await eventually(left)
        if after is not None:
            process.wait_for_line(f'"{after}"', timeout=120)
        process.signal(number)
        process.signal(number)  # the impatient get no less
        assert process.wait() == 130
        assert [line for line in process.stderr if line and "cleaning up" not in line] == []
        assert left() == []


async def test_what_is_opened_late_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection's thread does not hear that the call that asked for it was cancelled."""
    deployment = Deployment(tmp_path, "sqlite:///runner.db")
    deployment.write()
    late: list[Path] = []

    def open_late(path: Path) -> None:
        assert file is not None
        with pytest.raises(sqlite3.OperationalError):
            sqlite3.connect(file)
        late.append(path)
        remove(path)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", open_late)
    async with throwaway(load_config(deployment.path, imports=False)) as place:
        file = place.storage.dsn.path
    assert len(late) == 1
    assert _beside(deployment) == []


async def test_a_place_that_is_gone_already_is_no_error(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "sqlite:///runner.db")
    deployment.write()
    async with throwaway(load_config(deployment.path, imports=False)) as place:
        assert place.storage.dsn.path is not None
        shutil.rmtree(place.storage.dsn.path.parent)


async def test_a_place_that_stays_is_told_with_what_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment(tmp_path, "sqlite:///runner.db")
    deployment.write()

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    expected = rf"left behind: Permission denied; remove it with: rm -r {re.escape(str(tmp_path))}/runner_bench_\w+\*$"
    with pytest.raises(StorageError, match=expected):
        async with throwaway(load_config(deployment.path, imports=False)):
            pass


@pytest.mark.parametrize("command", ["bench", "migrate"])
def test_a_directory_that_is_not_there_is_told_as_everywhere_else(tmp_path: Path, command: str) -> None:
    deployment = Deployment(tmp_path, "sqlite:///none/runner.db")
    deployment.write()
    _, complaint = deployment.cli(command, code=78)
    assert complaint.endswith(f"storage.dsn: the directory {tmp_path / 'none'} does not exist; make it first\n")


def test_a_role_without_the_right_is_told_the_grant(
    postgres: PostgresServer, postgres_dsn: str, tmp_path: Path
) -> None:
    role = f"guest_{postgres_dsn[-8:]}"
    database = postgres_dsn.rsplit("/", 1)[1]
    postgres.psql(f"CREATE ROLE {role} LOGIN")
    try:
        deployment = Deployment(tmp_path, postgres_dsn.replace("postgres@", f"{role}@"))
        deployment.write()
        _, complaint = deployment.cli("bench", *FEW, code=1)
        grant = f"GRANT CREATE ON DATABASE {database} TO {role}"
        assert complaint.endswith(f"{grant}\n")
        postgres.psql(grant)
        deployment.cli("bench", *FEW)
        postgres.psql(f"REVOKE CREATE ON DATABASE {database} FROM {role}")
    finally:
        postgres.psql(f"DROP ROLE {role}")


def test_signals_are_measured_through_nats(postgres_dsn: str, nats_server: NatsServer, tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, postgres_dsn)
    deployment.write(more=f"strategies: [polling, {{nats: '{nats_server.url}'}}]\n")
    assert [measure["name"] for measure in deployment.json("bench", *FEW)] == NAMES


def test_without_a_push_strategy_there_is_no_signal_to_measure(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "sqlite:///runner.db")
    deployment.write(more="strategies: [polling]\n")
    names = [measure["name"] for measure in deployment.json("bench", *FEW)]
    assert names == [name for name in NAMES if "signalled" not in name]


@pytest.mark.parametrize("subject", ["mesh.{deployment_id}.events.notify", "acme.wake"])
async def test_nobody_else_is_woken(tmp_path: Path, subject: str) -> None:
    deployment = Deployment(tmp_path, "sqlite:///runner.db")
    deployment.write(more=f'subject: "{subject}"\n')
    config = load_config(deployment.path, imports=False)
    async with throwaway(config) as one, throwaway(config) as other:
        subjects = {each.signal_subject for each in (config, one, other)}
        assert len(subjects) == 3
        assert one.deployment_id.startswith("bench-")


def test_a_database_that_is_not_there_ends_with_69(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "postgresql://me:topsecret@127.0.0.1:1/none")
    deployment.write()
    _, complaint = deployment.cli("bench", *FEW, code=69)
    assert "topsecret" not in complaint


def _beside(deployment: Deployment) -> list[str]:
    return sorted(path.name for path in deployment.directory.glob("runner_bench_*"))
