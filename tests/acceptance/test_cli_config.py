from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.process import run_cli

from .deployment import Deployment


@pytest.fixture(params=["sqlite", "postgres"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Deployment:
    dsn = "sqlite:///runner.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    made = Deployment(tmp_path, dsn)
    made.write()
    return made


def test_what_init_writes_passes_check(tmp_path: Path) -> None:
    written = run_cli("init", cwd=tmp_path)
    assert written.returncode == 0
    assert "runner start -c runner.yaml" in written.stderr
    checked = run_cli("check", "-c", "runner.yaml", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "sqlite" in checked.stdout
    assert not (tmp_path / "runner.db").exists()


def test_init_replaces_a_file_only_when_forced(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    refused = run_cli("init", path)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert path.read_text() == "mine"
    assert run_cli("init", path, "--force").returncode == 0
    assert path.read_text() != "mine"
    nowhere = run_cli("init", tmp_path / "nowhere" / "runner.yaml")
    assert nowhere.returncode == 1
    assert "No such file or directory" in nowhere.stderr


def test_check_prints_the_plan_and_connects_only_when_told(deployment: Deployment) -> None:
    plan, _ = deployment.cli("check")
    for word in ("shop", "everything", "terminal", "polling"):
        assert word in plan
    online, _ = deployment.cli("check", "--online")
    assert online.startswith(plan)
    assert "not migrated" in online
    deployment.cli("migrate")
    assert "up to date" in deployment.cli("check", "--online")[0]


def test_check_names_every_fault(deployment: Deployment) -> None:
    deployment.path.write_text(deployment.path.read_text().replace("types:", "typs:"))
    output, complaint = deployment.cli("check", code=78)
    assert output == ""
    assert len(complaint.splitlines()) == 3


def test_config_show_hides_secrets(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, "postgresql://me:topsecret@db.example/shop")
    deployment.write()
    plain, _ = deployment.cli("config", "show")
    [shown] = deployment.json("config", "show")
    assert shown["deployment_id"] == "shop"
    assert "db.example" in plain
    assert "topsecret" not in plain + json.dumps(shown)
    assert "topsecret" not in "".join(deployment.cli("check"))


def test_config_schema_is_a_json_schema(tmp_path: Path) -> None:
    schema = json.loads(run_cli("config", "schema", cwd=tmp_path).stdout)
    assert schema["properties"].keys() >= {"deployment_id", "storage", "sinks", "subscriptions"}


def test_migrate_brings_the_tables_up_to_date_once(deployment: Deployment) -> None:
    [before] = deployment.json("migrate", "--status")
    assert before["current"] is None
    assert before["pending"] == [before["head"]]
    assert before["head"] in deployment.cli("migrate")[0]
    assert deployment.json("migrate", "--status") == [{**before, "current": before["head"], "pending": []}]
    assert deployment.cli("migrate")[0] == "the tables are up to date\n"
    assert "CREATE TABLE" in deployment.cli("migrate", "--sql")[0]


def test_tables_that_are_not_there_are_said_to_be_missing(deployment: Deployment) -> None:
    _, complaint = deployment.cli("events", "list", code=1)
    assert "runner migrate" in complaint
