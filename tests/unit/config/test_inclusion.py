"""`include:` makes one document of several files, and every fault is said of the file it is in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from runner.config import Config, dump, load_config
from runner.config.plugin import Plugin
from runner.config.source import PlacedText
from runner.errors import ConfigError

MAIN = """\
include: parts/*.yaml
deployment_id: d
storage: {dsn: "sqlite:///x.db"}
sinks: {out: stdout}
subscriptions:
  - {name: a, sink: out}
"""


def write(base: Path, **files: str) -> Path:
    """Write `MAIN`, and the files whose `_` stands for the directory they are in; return the path of the main one."""
    for name, text in {"main": MAIN, **files}.items():
        path = base / f"{name.replace('_', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return base / "main.yaml"


def faults(main: Path, monkeypatch: pytest.MonkeyPatch, *settings: str) -> list[str]:
    monkeypatch.chdir(main.parent)
    with pytest.raises(ConfigError) as refused:
        load_config("main.yaml", {}, settings=settings)
    return list(refused.value.faults)


def test_lists_are_joined_and_sections_and_names_are_joined_by_key(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        parts_b="subscriptions: [{name: c, sink: b}]\nworker: {batch: 7}\nsinks: {b: stdout}",
        parts_a="subscriptions: [{name: b, sink: b}]\nworker: {lease: 9s}",
    )
    config = load_config(main, {})
    assert [each.name for each in config.subscriptions] == ["a", "b", "c"]  # this file's, then in order of the names
    assert list(config.sinks) == ["out", "b"]
    assert (config.worker.batch, config.worker.lease.seconds) == (7, 9)


def test_files_are_read_in_the_order_they_are_named_in(tmp_path: Path) -> None:
    main = write(
        tmp_path,
        main=MAIN.replace("parts/*.yaml", "[z.yaml, a.yaml]"),
        z="include: m.yaml\nsubscriptions: [{name: z, sink: out}]",
        m="subscriptions: [{name: m, sink: out}]",
        a="subscriptions: [{name: y, sink: out}]",
    )
    assert [each.name for each in load_config(main, {}).subscriptions] == ["a", "z", "m", "y"]


def test_what_two_files_give_is_refused_with_both_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = write(
        tmp_path,
        parts_a="worker: {batch: 7}\nretry: {schedule: [1s]}",
        parts_b="\nworker: {batch: 8}\nsinks: {out: stdout}\nretry: {schedule: [2s]}\nstorage: []",
    )
    assert faults(main, monkeypatch) == [
        "parts/b.yaml:2:10: worker.batch: given at parts/a.yaml:1:10 already; only one file may say it",
        "parts/b.yaml:3:9: sinks.out: given at main.yaml:4:9 already; only one file may say it",
        "parts/b.yaml:4:9: retry.schedule: given at parts/a.yaml:2:9 already; only one file may say it",
        "parts/b.yaml:5:1: storage: given at main.yaml:3:1 already; only one file may say it",
    ]


def test_a_name_that_two_files_give_is_refused_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = write(tmp_path, parts_a="subscriptions:\n  - name: a\n    sink: out")
    assert faults(main, monkeypatch) == [
        "parts/a.yaml:2:5: subscriptions[0].name: a second subscription is called 'a'; names are unique, and the first"
        " is at main.yaml:6:6"
    ]


def test_faults_are_located_in_the_included_file_and_counted_as_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = write(
        tmp_path,
        main=MAIN.replace("sink: out", "sink: nosuch"),
        parts_a="subscriptions:\n  - {name: b, sink: nosuch, rat: 5/s}\n",
        parts_b="wroker: 1\nworker:\n  batch: ${NO}\n",
        parts_c="a: b: c",
        parts_d="- 1",
        parts_e="subscriptions:\n  - {name: c, sink: out, timeout: '${X:-}', retry: {max_attempts: x}}",
    )
    assert faults(main, monkeypatch) == [
        "main.yaml:6:15: subscriptions[0].sink: unknown sink 'nosuch', expected one of: out",
        "parts/a.yaml:2:15: subscriptions[0].sink: unknown sink 'nosuch', expected one of: out",
        "parts/a.yaml:2:29: subscriptions[0].rat: unknown key; did you mean 'rate'?",
        "parts/b.yaml:1:1: wroker: unknown key; did you mean 'worker'?",
        "parts/b.yaml:3:3: worker.batch: environment variable NO is not set; set it, or give a default: ${NO:-default}",
        "parts/c.yaml:1:5: not YAML: mapping values are not allowed in this context",
        "parts/d.yaml:1:1: expected a mapping with keys of the configuration",
        "parts/e.yaml:2:53: subscriptions[0].retry.max_attempts: expected a whole number, got 'x'",
    ]


def test_warnings_are_located_in_the_included_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = write(tmp_path, parts_a="\nsinks: {idle: stdout}")
    monkeypatch.chdir(main.parent)
    assert load_config("main.yaml", {}).locate(("sinks", "idle"), "odd") == "parts/a.yaml:2:9: sinks.idle: odd"


@pytest.mark.parametrize(
    ("include", "fault"),
    [
        ("nosuch.yaml", "main.yaml:1:1: include: 'nosuch.yaml': no such file"),
        ("[parts]", "main.yaml:1:11: include[0]: 'parts' is a directory; for the files in it add /*.yaml"),
        ("main.yaml", "main.yaml:1:1: include: a file cannot include itself: main.yaml -> main.yaml"),
        (
            "parts/back.yaml",
            "parts/back.yaml:1:1: include: a file cannot include itself: main.yaml -> parts/back.yaml -> main.yaml",
        ),
        (
            "[parts/leaf.yaml, parts/../parts/leaf.yaml]",
            "main.yaml:1:28: include[1]: 'parts/leaf.yaml' is included a second time; the first is at main.yaml:1:11",
        ),
        ("fifo", "main.yaml:1:1: include: 'fifo' is a pipe or a device; expected a regular file"),
        (
            "{a: 1}",
            "main.yaml:1:1: include: expected the path of a file, such as parts/*.yaml, or a list of them, got a"
            " mapping",
        ),
        (
            "'${NO}'",
            "main.yaml:1:1: include: environment variable NO is not set; set it, or give a default: ${NO:-default}",
        ),
    ],
)
def test_what_cannot_be_included_is_a_fault_where_it_is_named(
    include: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = write(
        tmp_path,
        main=MAIN.replace("parts/*.yaml", include),
        parts_leaf="types: {}",
        parts_back="include: ../main.yaml",
    )
    os.mkfifo(tmp_path / "fifo")
    assert fault in faults(main, monkeypatch)


def test_a_pattern_that_matches_nothing_and_an_empty_file_add_nothing(tmp_path: Path) -> None:
    main = write(tmp_path, main=MAIN.replace("parts/*.yaml", "[none/*.yaml, empty.yaml]"), empty="# nothing yet\n")
    assert len(load_config(main, {}).subscriptions) == 1


def test_all_files_together_have_the_limits_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = "# " + "x" * 600_000
    assert (
        "the files are larger than 1024 KiB together"
        in faults(write(tmp_path, parts_a=big, parts_b=big), monkeypatch)[0]
    )
    many = "types: [" + "1," * 30_000 + "]"
    main = write(tmp_path, parts_a=many, parts_b=many)
    assert any(each.startswith("parts/b.yaml:1:") and "50000 values" in each for each in faults(main, monkeypatch))


HOOK = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PARTS = """\
storage: {dsn: "sqlite:///y.db"}
sinks:
  crm: {webhook: {url: "https://crm.example/in", secret: "${file:hook}", tls: {ca: ca.pem}}}
  own: {"os.path:join": {path: mine.txt}}
subscriptions:
  - {name: b, types: ["x.*"], source: /s, sink: crm, rate: 5/s, filter: {exact: {type: x}}, order_by: subject}
schedules:
  - {name: s, every: 1h, event: {type: t, data: {a: [b]}}}
types: {"x.*": {schema: x.json}}
api: {listen: "unix:s.sock", tokens: [{name: t, secret: "${file:secret}", scopes: [read]}]}
"""


def test_paths_are_relative_to_the_file_they_are_in(tmp_path: Path) -> None:
    main = write(tmp_path, main=MAIN.replace('storage: {dsn: "sqlite:///x.db"}\n', ""), parts_a=PARTS)
    (tmp_path / "parts" / "secret").write_text("evb_" + "s" * 43)
    (tmp_path / "parts" / "hook").write_text(HOOK)
    (tmp_path / "parts" / "x.json").write_text("{}")
    config = load_config(main, {})
    assert config.storage.dsn.path == tmp_path / "parts" / "y.db"
    assert config.types["x.*"].schema_file == tmp_path / "parts" / "x.json"
    assert config.api is not None
    assert config.api.listen == f"unix:{tmp_path / 'parts' / 's.sock'}"
    assert dump(config)["sinks"]["crm"]["webhook"]["tls"]["ca"] == str(tmp_path / "parts" / "ca.pem")


def test_an_included_configuration_is_no_different_from_one_in_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for directory in (tmp_path, tmp_path / "parts"):
        (directory / "secret").write_text("evb_" + "s" * 43)
        (directory / "hook").write_text(HOOK)
        (directory / "x.json").write_text("{}")
    parts = (
        PARTS.replace("${file:secret}", f"${{file:{tmp_path}/secret}}")
        .replace("x.json", f"{tmp_path}/x.json")
        .replace("${file:hook}", HOOK)
    )
    parts = parts.replace("ca.pem", "/ca.pem").replace("unix:", f"unix:{tmp_path}/").replace("///y", f"///{tmp_path}/y")
    head = MAIN.replace('storage: {dsn: "sqlite:///x.db"}\n', "")
    main = write(tmp_path, main=head, parts_a=parts)
    whole = tmp_path / "whole.yaml"
    text = head.replace("include: parts/*.yaml\n", "")
    whole.write_text(_joined(text, parts))
    assert dump(load_config(main, {})) == dump(load_config(whole, {}))
    assert not _placed(load_config(main, {}))


def _joined(text: str, parts: str) -> str:
    one, two = yaml.safe_load(text), yaml.safe_load(parts)
    for key, value in two.items():
        if key in ("sinks", "subscriptions"):
            one[key] = one[key] | value if isinstance(value, dict) else one[key] + value
        else:
            one[key] = value
    return yaml.safe_dump(one, sort_keys=False)


def _placed(value: Any) -> list[str]:
    """Return the texts that are not plain ones."""
    match value:
        case PlacedText():
            return [value]
        case Config() | BaseModel():
            return [each for inside in vars(value).values() for each in _placed(inside)]
        case Plugin():
            return _placed(value.options)
        case dict():
            return [each for pair in value.items() for inside in pair for each in _placed(inside)]
        case list() | tuple():
            return [each for inside in value for each in _placed(inside)]
    return []


def test_every_file_that_is_read_counts_in_what_changes(tmp_path: Path) -> None:
    main = write(tmp_path, parts_a="include: more.yaml", parts_more="log: {level: '${file:level}'}")
    main.write_text(MAIN.replace("parts/*.yaml", "parts/a.yaml"))
    (tmp_path / "parts" / "level").write_text("debug")
    files = load_config(main, {})._source.files
    assert set(files) == {main, *(tmp_path / "parts" / name for name in ("a.yaml", "more.yaml", "level"))}
