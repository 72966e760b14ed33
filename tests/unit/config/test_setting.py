"""`--set` gives a value in place of the file's, and what is wrong with it is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.config import dump, load_config
from runner.config.errors import KeyPath
from runner.config.setting import parse_setting
from runner.errors import ConfigError

FILE = """\
deployment_id: d
storage: {dsn: "sqlite:///x.db"}
strategies: [polling, sqlite]
sinks: {out: stdout}
subscriptions:
  - {name: a, sink: out, rate: "${RATE:-5/s}"}
retry: {max_attempts: 3}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "x.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return "x.yaml"


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a=1", ("a",), "1"),
        ("a.b[0].c=x=y", ("a", "b", 0, "c"), "x=y"),
        ('types."order.*".schema=', ("types", "order.*", "schema"), ""),
        ("sinks.'my.sink'=stdout", ("sinks", "my.sink"), "stdout"),
        ("a.0.b=1", ("a", "0", "b"), "1"),
        ("a.b-c={d: e}", ("a", "b-c"), "{d: e}"),
    ],
)
def test_a_setting_has_a_path_and_a_value(text: str, path: KeyPath, value: str) -> None:
    assert parse_setting(text) == (path, value)


@given(st.text(max_size=20))
def test_any_text_is_a_setting_or_refused(text: str) -> None:
    try:
        path, value = parse_setting(text)
    except ValueError:
        return
    assert path
    assert text.endswith("=" + value)


def test_values_are_typed_by_yaml_and_the_last_one_counts(file: str) -> None:
    config = load_config(
        file,
        {"LEVEL": "debug"},
        settings=(
            "worker.batch=7",
            "worker.batch=8",
            "worker.enabled=no",
            "subscriptions[0].types=[x, y]",
            "subscriptions.0.rate=",
            "strategies[0]={polling: 5s}",
            "log.level=${LEVEL}",
            "retry={max_attempts: 9}",
            "sinks.more={stdout: {format: json}}",
        ),
    )
    assert (config.worker.batch, config.worker.enabled) == (8, False)
    assert (config.subscriptions[0].types, config.subscriptions[0].rate) == (("x", "y"), None)
    assert (config.log.level, config.retry.max_attempts, list(config.sinks)) == ("debug", 9, ["out", "more"])
    assert dump(config)["strategies"][0]["polling"]["every"] == "5s"
    assert config.settings[0] == "worker.batch=7"


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ("worker.batch=abc", "--set worker.batch: expected a whole number, got 'abc'"),
        ("worker.bacth=1", "--set worker.bacth: unknown key 'bacth', expected one of: batch,"),
        ("worker.bacth=1", "did you mean 'batch'?"),
        ("subscriptions[0].retry.atempts=1", "did you mean 'max_attempts'?"),
        ("subscriptions[0].sink=x", "--set subscriptions[0].sink: unknown sink 'x', expected one of: out"),
        ("subscriptions[1].sink=x", "--set subscriptions[1].sink: subscriptions has 1 item, from [0];"),
        ("subscriptions.first.sink=x", "subscriptions is a list; expected an index such as subscriptions[0]"),
        ("worker[0]=x", "--set worker[0]: worker has no items; set it whole: --set 'worker=[…]'"),
        ("retry[0]=x", "--set retry[0]: retry is a mapping; expected one of its keys instead of [0]"),
        ("sinks.out.stdout=x", "--set sinks.out.stdout: sinks.out is text; set it whole: --set 'sinks.out={…}'"),
        ("worker={batch: 1, bacth: 2}", "--set worker: worker.bacth: unknown key; did you mean 'batch'?"),
        ("worker.batch=[", "--set worker.batch: not YAML:"),
        ("worker.batch=${NO}", "--set worker.batch: environment variable NO is not set;"),
        ("storage={}", "--set storage: storage.dsn: this key is required"),
        ("include=x.yaml", "--set include: only files include others"),
        ("deployment_id=", "--set deployment_id: "),
        ("worker", "--set 'worker': expected KEY=VALUE"),
        ("=x", "expected KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_said_of_the_setting(file: str, setting: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(file, {}, settings=[setting])
    assert fault in str(refused.value)
    assert all(line.startswith("--set ") for line in refused.value.faults)


def test_a_fault_of_the_file_is_mended_by_a_setting(file: str) -> None:
    Path(file).write_text(FILE.replace("max_attempts: 3", "max_attempts: x").replace("RATE:-5/s", "RATE"))
    with pytest.raises(ConfigError, match="RATE is not set"):
        load_config(file, {})
    config = load_config(file, {}, settings=["subscriptions[0].rate=1/s", "retry.max_attempts=2"])
    assert config.retry.max_attempts == 2


def test_paths_of_settings_start_from_the_working_directory(file: str, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    Path(file).rename(tmp_path / "configs" / "x.yaml")
    config = load_config("configs/x.yaml", {}, settings=["storage.dsn=sqlite:///there.db"])
    assert config.storage.dsn.path == tmp_path / "there.db"


def test_faults_repeat_no_secret_of_a_setting(file: str) -> None:
    secret = "hunter2hunter2hunter2"
    for setting in (f"storage.dsn=postgresql://u:{secret}@h:x/d", f"storage={secret}@h", f"postgresql://u:{secret}@h"):
        with pytest.raises(ConfigError) as refused:
            load_config(file, {}, settings=[setting])
        assert secret not in str(refused.value)
