"""What is printed for a broken file: line for line."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.config import Config, load_config
from runner.errors import ConfigError

HEAD = "deployment_id: d\nstorage: {dsn: 'sqlite:///x.db'}\n"
STREAM = (
    HEAD.replace("{", "{{").replace("}", "}}")
    + "sinks: {{a: {{nats: {{servers: h, subject: '{subject}', jetstream: true, stream: {stream}}}}}}}"
)
POSTGRES = "deployment_id: d\nstorage: {dsn: 'postgresql://u@h/b'}\n"


def faults(directory: Path, text: str | bytes, **environ: str) -> list[str]:
    """Return the lines `load_config` reports, the file's directory taken off."""
    path = directory / "f.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return [line.removeprefix(f"{directory}/f.yaml:") for line in caught.value.faults]


TABLE = [
    # the top
    ("storage: {dsn: 'sqlite:///x'}", "1:1: deployment_id: this key is required"),
    ("deployment_id: d", "1:1: storage: this key is required"),
    (
        "deployment_id: no\nstorage: {dsn: 'sqlite:///x'}",
        "1:1: deployment_id: expected text, got a yes/no value; quote it",
    ),
    (
        "deployment_id: 10\nstorage: {dsn: 'sqlite:///x'}",
        "1:1: deployment_id: expected text, got a number; quote it",
    ),
    (
        "deployment_id: a.b\nstorage: {dsn: 'sqlite:///x'}",
        "1:1: deployment_id: expected up to 63 letters, digits, '_' and '-', no '_' or '-' first, got 'a.b'",
    ),
    (
        'deployment_id: "ab\\n"\nstorage: {dsn: "sqlite:///x"}',
        "1:1: deployment_id: expected up to 63 letters, digits, '_' and '-', no '_' or '-' first, got 'ab\\n'",
    ),
    (HEAD + "sinkz: {}", "3:1: sinkz: unknown key; did you mean 'sinks'?"),
    (HEAD + "sinks: []", "3:1: sinks: expected a mapping, got a list"),
    (HEAD + "subscriptions: {}", "3:1: subscriptions: expected a list, got a mapping"),
    (
        HEAD + "'a\\nb': 1".replace("'", '"'),
        f"3:1: 'a\\nb': unknown key, expected one of: {', '.join(sorted(Config.model_fields))}",
    ),
    # batches
    (
        HEAD + "sinks: {log: stdout}\nsubscriptions: [{name: a, sink: log, batch: 10}]",
        "4:38: subscriptions[0].batch: sink 'log' (stdout) takes one event at a time; leave batch out, or name a "
        "python or webhook sink",
    ),
    (
        HEAD + "sinks: {f: {python: 'builtins:print'}}\n"
        "subscriptions: [{name: a, sink: f, batch: 10}, {name: b, sink: f}]",
        "4:36: subscriptions[0].batch: sink 'f' would call its function with lists here, and with single events for "
        "another subscription; give each a sink of its own",
    ),
    (
        HEAD + "sinks: {f: {webhook: 'http://h/'}}\nretry: {max_attempts: 1}\n"
        "subscriptions: [{name: a, sink: f, batch: 10}]",
        "5:36: subscriptions[0].batch: a failed delivery of a batch is tried again alone; "
        "give retry.max_attempts of 2 or more",
    ),
    (
        HEAD + "sinks: {f: {webhook: 'http://h/'}}\nsubscriptions: [{name: a, sink: f, batch: 1001}]",
        "4:36: subscriptions[0].batch: expected at most 1000, got 1001",
    ),
    # the subject
    (
        HEAD + "subject: mesh.*.x",
        "3:1: subject: expected a NATS subject: at most 200 characters, letters, digits, '_', '-' and "
        "{deployment_id} between single dots, got 'mesh.*.x'",
    ),
    (
        HEAD + "subject: mesh..x",
        "3:1: subject: expected a NATS subject: at most 200 characters, letters, digits, '_', '-' and "
        "{deployment_id} between single dots, got 'mesh..x'",
    ),
    (
        HEAD + "subject: mesh.{deployment}.x",
        "3:1: subject: unknown placeholder 'deployment', expected one of: deployment_id; did you mean 'deployment_id'?",
    ),
    (
        HEAD + "subject: _INBOX.x",
        "3:1: subject: subjects that start with _INBOX or $ are reserved, got '_INBOX.x'",
    ),
    # storage
    (
        "deployment_id: d\nstorage: {dsn: 5}",
        "2:11: storage.dsn: expected a DSN such as postgresql://user@host:5432/database or sqlite:///file.db",
    ),
    (
        "deployment_id: d\nstorage:\n  dsn: 'sqlite:///:memory:'",
        "3:3: storage.dsn: expected sqlite:///file.db; a database in memory cannot be shared by several connections, "
        "nor outlive them",
    ),
    (
        "deployment_id: d\nstorage: {dsn: 'postgresql://h/b', schema: Public}",
        "2:36: storage.schema: expected up to 63 lower-case letters, digits and '_', no digit and no 'pg_' first, "
        "got 'Public'",
    ),
    (
        "deployment_id: d\nstorage: {dsn: 'sqlite:///x', schema: s}",
        "2:31: storage.schema: SQLite has no schemas; leave it out, and give each deployment its own file",
    ),
    (
        "deployment_id: d\nstorage: {dsn: 'postgresql://h/b', schema_name: s}",
        "2:36: storage.schema_name: unknown key; did you mean 'schema'?",
    ),
    ("deployment_id: d\nstorage: {dsn: 'sqlite:///x', pool: 0}", "2:31: storage.pool: expected at least 1, got 0"),
    (
        "deployment_id: d\nstorage: {dsn: 'sqlite:///x', pool: yes}",
        "2:31: storage.pool: expected a whole number, got true",
    ),
    (
        "deployment_id: d\nstorage: {dsn: 'sqlite:///x', migrate: maybe}",
        "2:31: storage.migrate: expected true or false, got 'maybe'",
    ),
    # strategies
    (
        HEAD + "strategies: [{pollling: 30s}]",
        "3:14: strategies[0]: unknown kind 'pollling', expected one of: nats, polling, postgres, sqlite; "
        "did you mean 'polling'?",
    ),
    (
        HEAD + "strategies: [{polling: 30s, sqlite: 25ms}]",
        "3:14: strategies[0]: expected a kind (nats, polling, postgres, sqlite), or one kind with its options, "
        "got a mapping of 2 keys",
    ),
    (HEAD + "strategies: []", "3:1: strategies: expected a non-empty list"),
    (
        HEAD + "strategies: [{polling: 30}]",
        "3:15: strategies[0].polling: expected a duration such as 30s, 25ms, 1h30m or 7d, got 30",
    ),
    (
        HEAD + "strategies: [{polling: {every: 0s}}]",
        "3:25: strategies[0].polling.every: expected a duration above zero, got 0s",
    ),
    (
        HEAD + "strategies: [{polling: {evry: 1s}}]",
        "3:25: strategies[0].polling.evry: unknown key; did you mean 'every'?",
    ),
    (HEAD + "strategies:\n  - nats", "4:5: strategies[0].nats.servers: this key is required"),
    (
        HEAD + "strategies:\n  - nats: {servers: []}",
        "4:12: strategies[0].nats.servers: expected a non-empty list",
    ),
    (
        HEAD + "strategies:\n  - nats: {servers: ['http://hunter2']}",
        "4:22: strategies[0].nats.servers[0]: expected a URL such as nats://host:4222 or tls://host:4222",
    ),
    (
        HEAD + "strategies:\n  - nats: {servers: 'nats://a:b@h', token: t}",
        "4:12: strategies[0].nats.servers: a user is given in several ways; give user and password, or token, once",
    ),
    (
        HEAD + "strategies:\n  - nats: {servers: 'nats://h', user: u, token: t}",
        "4:5: strategies[0].nats: expected one of: credentials, user, token, got user and token",
    ),
    (
        HEAD + "strategies: [postgres]",
        "3:14: strategies[0]: strategy 'postgres' needs a store on PostgreSQL; use 'sqlite' with storage.dsn sqlite://…",
    ),
    (
        POSTGRES + "strategies: [sqlite]",
        "3:14: strategies[0]: strategy 'sqlite' needs a store on SQLite; use 'postgres' with storage.dsn postgresql://…",
    ),
    (
        "deployment_id: d\nstorage: {dsn: 'postgresql://h/b', pgbouncer: true}\nstrategies: [postgres]",
        "3:14: strategies[0]: LISTEN does not work through pgbouncer; give the strategy a direct DSN: "
        "postgres: {dsn: postgresql://…}",
    ),
    (
        HEAD + "strategies: [{'no_such_package.wakeups:Redis': {}}]",
        "3:14: strategies[0]: cannot import 'no_such_package.wakeups': No module named 'no_such_package'",
    ),
    (
        HEAD + "strategies: [{'json:JSONDecoder': 5}]",
        "3:14: strategies[0]: expected a mapping of options, got 5",
    ),
    # sinks
    (
        HEAD + "sinks: {a: stdot}",
        "3:9: sinks.a: unknown kind 'stdot', expected one of: nats, python, stdout, webhook; did you mean 'stdout'?",
    ),
    (
        HEAD + "sinks: {a/b: stdout}",
        "3:9: sinks.a/b: expected up to 63 letters, digits, '_', '-' and '.', no '_', '-' or '.' first, got 'a/b'",
    ),
    (HEAD + "sinks: {a: {stdout: xml}}", "3:13: sinks.a.stdout: expected one of: text, json, got 'xml'"),
    (
        HEAD + "sinks: {a: {python: nothing}}",
        "3:13: sinks.a.python: expected module:function, such as acme.audit:handle, got 'nothing'",
    ),
    (
        HEAD + "sinks: {a: {python: 'json:dumpz'}}",
        "3:13: sinks.a.python: 'json' has no 'dumpz'; did you mean 'dump'?",
    ),
    (
        HEAD + "sinks: {a: {python: 'json:__name__'}}",
        "3:13: sinks.a.python: 'json:__name__' is a str, expected something to call",
    ),
    (
        HEAD + "sinks: {a: {python: {target: 'json:dumps', permanent: [ValueError, KeyEror]}}}",
        "3:68: sinks.a.python.permanent[1]: expected an exception, such as ValueError or acme.errors:Bad, "
        "got 'KeyEror'; did you mean 'KeyError'?",
    ),
    (
        HEAD + "sinks: {a: {python: {target: 'json:dumps', permanent: ['json:dumps']}}}",
        "3:56: sinks.a.python.permanent[0]: expected an exception, such as ValueError or acme.errors:Bad, "
        "got 'json:dumps'",
    ),
    (
        HEAD + "sinks: {a: {webhook: {url: 'https://h', permanent: [404, 200]}}}",
        "3:58: sinks.a.webhook.permanent[1]: expected at least 300, got 200",
    ),
    (HEAD + "sinks: {a: webhook}", "3:9: sinks.a.webhook.url: this key is required"),
    (
        HEAD + "sinks: {a: {webhook: 'https://u:hunter2@h'}}",
        "3:13: sinks.a.webhook: a URL with a user or password is refused; use headers: {Authorization: …}",
    ),
    (
        HEAD + "sinks: {a: {webhook: {url: 'https://h', headers: {CE-Id: x}}}}",
        "3:41: sinks.a.webhook.headers: 'CE-Id' is set by the sink itself; leave it out",
    ),
    (
        HEAD + 'sinks: {a: {webhook: {url: "https://h", headers: {X: "hunter2\\r\\n"}}}}',
        "3:51: sinks.a.webhook.headers.X: a line end or control character is part of it; if it comes from a variable or"
        " a file, write it there without (printf '%s', not echo)",
    ),
    (
        HEAD + "sinks: {a: {webhook: {url: 'https://h', headers: {X: 5}}}}",
        "3:51: sinks.a.webhook.headers.X: expected text, got a number; quote it",
    ),
    (
        HEAD + "sinks: {a: {nats: 'mesh.x'}}\nstrategies: [{nats: 'nats://h'}]",
        "3:13: sinks.a.nats: subjects that start with mesh. or _INBOX or $ are reserved, got 'mesh.x'",
    ),
    (
        HEAD + "sinks: {a: {nats: 'orders.{typ}'}}\nstrategies: [{nats: 'nats://h'}]",
        "3:13: sinks.a.nats: unknown placeholder 'typ', expected one of: deployment_id, id, source, subject, type; "
        "did you mean 'type'?",
    ),
    (
        HEAD + "sinks: {a: {nats: orders}}",
        "3:9: sinks.a: nats.servers: this key is required, because no nats strategy says where NATS is",
    ),
    (
        HEAD + "sinks: {a: {nats: {servers: h, subject: a, stream: {name: A}}}}",
        "3:9: sinks.a: nats.stream: only a stream needs it; add jetstream: true, or remove it",
    ),
    (
        HEAD + "sinks: {a: {nats: {servers: h, subject: a, timeout: 1s}}}",
        "3:9: sinks.a: nats.timeout: only a stream needs it; add jetstream: true, or remove it",
    ),
    (
        STREAM.format(subject="orders.{type}", stream="{name: A, subjects: [bills.>]}"),
        "3:9: sinks.a: nats.stream.subjects: none of them takes 'orders.{type}', so that no event would be stored;"
        " add 'orders.>'",
    ),
    (
        STREAM.format(subject="{type}.x", stream="{name: A}"),
        "3:9: sinks.a: nats.stream.subjects: this key is required, because '{type}.x' may become any subject",
    ),
    (
        STREAM.format(subject="a", stream="{name: A.B}"),
        "3:72: sinks.a.nats.stream.name: expected the name of a stream: up to 255 letters, digits, '_' and '-'",
    ),
    (
        STREAM.format(subject="a", stream="{name: A, subjects: ['>']}"),
        "3:92: sinks.a.nats.stream.subjects[0]: expected a subject such as orders.*, or orders.> with tokens below it,"
        " got '>'",
    ),
    (
        STREAM.format(subject="a", stream="{name: A, max_age: 1m}"),
        "3:63: sinks.a.nats.stream: duplicate_window: longer than max_age, which NATS refuses; shorten it, or keep"
        " longer",
    ),
    (
        STREAM.format(subject="a", stream="{name: A, replicas: 6}"),
        "3:81: sinks.a.nats.stream.replicas: expected at most 5, got 6",
    ),
    # subscriptions
    (
        HEAD + "sinks: {crm: stdout}\nsubscriptions: [{name: a, sink: crmm}]",
        "4:27: subscriptions[0].sink: unknown sink 'crmm', expected one of: crm; did you mean 'crm'?",
    ),
    (
        HEAD + "subscriptions: [{name: a, sink: s}]",
        "3:27: subscriptions[0].sink: unknown sink 's', there is none",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, dead_letter: t}]",
        "4:36: subscriptions[0].dead_letter: unknown sink 't', expected one of: s",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions:\n  - {name: a, sink: s}\n  - {name: a, sink: s}",
        "6:6: subscriptions[1].name: a second subscription is called 'a'; names are unique",
    ),
    (
        HEAD + "breaker: yes",
        "3:1: breaker: expected off, or a mapping such as {failures: 20}, got true",
    ),
    (
        HEAD + "breaker: {failures: 0}",
        "3:11: breaker.failures: expected at least 1, got 0",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a.dead-letter, sink: s}]",
        "4:18: subscriptions[0].name: names that end in '.dead-letter' are taken, for dead letters",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, retry: {max_atempts: 12}}]",
        "4:44: subscriptions[0].retry.max_atempts: unknown key; did you mean 'max_attempts'?",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, types: []}]",
        "4:36: subscriptions[0].types: expected a non-empty list",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, filter: {any: [{exat: {}}]}}]",
        "4:36: subscriptions[0].filter: any[0].exat: unknown dialect 'exat', expected one of: all, any, exact, not, "
        "prefix, suffix",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, rate: 20/d}]",
        "4:36: subscriptions[0].rate: expected a rate such as 20/s, 100/m or 1000/h, got '20/d'",
    ),
    # what this version does not act on
    (
        HEAD + "sinks: {a: {webhook: {url: 'https://h', secret: hunter2}}}",
        "3:41: sinks.a.webhook.secret: expected whsec_ and the base64 of 24 to 64 random bytes, or whsk_ and that of an"
        " ed25519 key of 32 or 64",
    ),
    (
        HEAD + "sinks: {a: {webhook: {url: 'https://h', previous_until: 2026-01-31T12:00:00}}}",
        "3:41: sinks.a.webhook.previous_until: expected a time with its offset, such as 2026-01-31T12:00:00Z, got"
        " '2026-01-31T12:00:00'",
    ),
    # habits of other systems
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, types: ['order.>']}]",
        "4:44: subscriptions[0].types[0]: '>' stands for itself here; for everything that starts so write 'order.*', or"
        " filter: {exact: {type: 'order.>'}} for a type of that name",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, types: '#'}]",
        "4:36: subscriptions[0].types: '#' stands for itself here; for everything that starts so write '*', or"
        " filter: {exact: {type: '#'}} for a type of that name",
    ),
    # the rest
    (HEAD + "worker: {lease: 10ms}", "3:10: worker.lease: expected at least 1 second, got 10ms"),
    (HEAD + "worker: 5", "3:1: worker: expected a mapping, got 5"),
    (HEAD + "retry: {jitter: 2}", "3:9: retry.jitter: expected at most 1.0, got 2"),
    (HEAD + "retry: {jitter: .nan}", "3:9: retry.jitter: expected a finite number, got nan"),
    (
        HEAD + "retry: {schedule: [1s, 10s], delay: 1s, max_delay: 1m}",
        "3:9: retry.schedule: it lists every wait; leave out delay and max_delay, or the schedule",
    ),
    (
        HEAD + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s, retry: {delay: 1s, schedule: [1s]}}]",
        "4:55: subscriptions[0].retry.schedule: it lists every wait; leave out delay, or the schedule",
    ),
    (
        HEAD + "retry: {delay: 1m, max_delay: 1s}",
        "3:20: retry.max_delay: expected at least delay, 1m, got 1s",
    ),
    (
        HEAD + "breaker: {pause: 10m, max_pause: 1m}",
        "3:23: breaker.max_pause: expected at least pause, 10m, got 1m",
    ),
    (HEAD + "retry: {schedule: []}", "3:9: retry.schedule: expected a non-empty list"),
    (
        HEAD + "retry: {schedule: [1s, 5]}",
        "3:24: retry.schedule[1]: expected a duration such as 30s, 25ms, 1h30m or 7d, got 5",
    ),
    (HEAD + "retry: {max_age: 0s}", "3:9: retry.max_age: expected a duration above zero, got 0s"),
    (HEAD + "retry: {max_attempts: 1.5}", "3:9: retry.max_attempts: expected a whole number, got 1.5"),
    (
        HEAD + "log: {level: inf}",
        "3:7: log.level: expected one of: debug, info, warning, error, got 'inf'; did you mean 'info'?",
    ),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_one_fault(tmp_path: Path, text: str, expected: str) -> None:
    assert faults(tmp_path, text) == [expected]


def test_no_line_of_the_table_repeats_a_secret() -> None:
    assert not [expected for _, expected in TABLE if "hunter2" in expected]


def test_all_faults_in_one_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
deployment_id: no
storage:
  dsn: ${DATABASE_URL}
  poool: 5
storage: {}
strategies: [{pollling: 30s}]
sinks: {crm: stdout}
subscriptions:
  - {name: a, sink: crmm, retry: {delay: soon}}
  - {sink: crm, filter: {}}
"""
    assert faults(tmp_path, text) == [
        "1:1: deployment_id: expected text, got a yes/no value; quote it",
        "3:3: storage.dsn: environment variable DATABASE_URL is not set; set it, or give a default: "
        "${DATABASE_URL:-default}",
        "4:3: storage.poool: unknown key; did you mean 'pool'?",
        "5:1: storage: duplicate key; it is given in line 2 already",
        "6:14: strategies[0]: unknown kind 'pollling', expected one of: nats, polling, postgres, sqlite; "
        "did you mean 'polling'?",
        "9:15: subscriptions[0].sink: unknown sink 'crmm', expected one of: crm; did you mean 'crm'?",
        "9:35: subscriptions[0].retry.delay: expected a duration such as 30s, 25ms, 1h30m or 7d, got 'soon'",
        "10:5: subscriptions[1].name: this key is required",
        "10:17: subscriptions[1].filter: filter: expected a mapping with one of: all, any, exact, not, prefix, suffix",
    ]


def test_values_from_outside_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2!")
    text = HEAD + "log: {level: '${X}'}\nworker: {lease: '${file:secret}'}\nsinks: {a: '${X}'}\nsubject: '${X}.*'\n"
    found = faults(tmp_path, text, X="hunter2")
    assert found == [
        "3:7: log.level: expected one of: debug, info, warning, error, got '${X}'",
        "4:10: worker.lease: expected a duration such as 30s, 25ms, 1h30m or 7d, got '${file:secret}'",
        "5:9: sinks.a: unknown kind '${X}', expected one of: nats, python, stdout, webhook",
        "6:1: subject: expected a NATS subject: at most 200 characters, letters, digits, '_', '-' and "
        "{deployment_id} between single dots, got '${X}.*'",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the file is empty, expected deployment_id and storage"),
        ("# nothing\n", "the file is empty, expected deployment_id and storage"),
        ("--- ~\n", "the file is empty, expected deployment_id and storage"),
        ("x" * (1024 * 1024 + 1), "larger than 1024 KiB; expected a configuration file"),
    ],
)
def test_faults_of_the_whole_file(tmp_path: Path, content: str, expected: str) -> None:
    assert faults(tmp_path, content) == [f" {expected}"]


def test_the_top_has_to_be_a_mapping(tmp_path: Path) -> None:
    assert faults(tmp_path, "- a") == ["1:1: expected a mapping with deployment_id and storage"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none.yaml", "no such file; write one with: runner init"),
        (tmp_path, "this is a directory, expected a file"),
        (tmp_path / "a\0b", "the file cannot be read: no valid path"),
        (tmp_path / ("x" * 300), "the file cannot be read: File name too long"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(path, {})
        assert caught.value.faults == (f"{path}: {reason}",)


def test_messages_begin_with_the_path_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prod.yaml").write_text("a: 1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^prod\.yaml:1:1: "):
        load_config("prod.yaml", {})


def test_a_hundred_faults_are_enough(tmp_path: Path) -> None:
    found = faults(tmp_path, HEAD + "".join(f"k{n}: 1\n" for n in range(500)))
    assert len(found) == 101
    assert found[-1] == " … and 400 more faults"


def test_code_that_fails_to_import_is_a_fault_without_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('hunter2')")
    (tmp_path / "exits_at_import.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = HEAD + "sinks:\n  a: {python: 'raises_at_import:f'}\n  b: {python: 'exits_at_import:f'}\n"
    assert faults(tmp_path, text) == [
        "4:7: sinks.a.python: cannot import 'raises_at_import': it raised RuntimeError; "
        "python -c 'import raises_at_import' shows where",
        "5:7: sinks.b.python: cannot import 'exits_at_import': it raised SystemExit; "
        "python -c 'import exits_at_import' shows where",
    ]


@pytest.mark.parametrize(
    "bomb",
    ["[" * 5000, "a: &a [1]\nb: [" + "*a, " * 20_000 + "]", "{" * 400_000, "deployment_id: {a: " * 50_000],
)
def test_bombs_are_refused_within_a_second(tmp_path: Path, bomb: str) -> None:
    started = time.process_time()
    assert all(line[0].isdigit() or "more faults" in line for line in faults(tmp_path, bomb))
    assert time.process_time() - started < 1


# --- nothing but ConfigError -----------------------------------------------------------------------

WORDS = """
    deployment_id storage dsn schema strategies polling nats servers postgres sqlite sinks a stdout webhook url headers
    python subject subscriptions name types sink retry filter rate schedules cron timezone event worker lease api listen
"""
VALUES = """
    d @daily sqlite:///x postgresql://h/b 30s a polling '*' yes ~ 5 1.5 .nan -1 ${X} '${X}' '${X' Europe/Paris 20/s
    '${Y:-}' ${Y:-} '${Y:-null}' stdout json:dumps nats://u:p@h https://h 1:30 '' 99999999999999999999
    '127.0.0.1:1' 1e400
"""
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.one_of(
    st.sampled_from(VALUES.split()),
    st.just("0 2 * * *"),
    st.integers().map(str),
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.lists(st.tuples(KEYS, inner), max_size=6).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        ),
    ),
    max_leaves=25,
)


def load_or_refuse(directory: Path, content: bytes) -> None:
    path = directory / "f.yaml"
    path.write_bytes(content)
    faults: tuple[str, ...] = ("loaded",)
    try:
        load_config(path, {"X": "hunter2"})
    except ConfigError as error:
        faults = error.faults
    assert faults
    assert all("\n" not in line and "hunter2" not in line for line in faults)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=300))
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    load_or_refuse(tmp_path, content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(document=DOCUMENTS)
def test_random_documents(tmp_path: Path, document: str) -> None:
    load_or_refuse(tmp_path, document.encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(entries=st.lists(st.tuples(KEYS, DOCUMENTS), max_size=8))
def test_random_entries_beside_good_ones(tmp_path: Path, entries: list[tuple[str, str]]) -> None:
    load_or_refuse(tmp_path, (HEAD + "".join(f"{key}: {value}\n" for key, value in entries)).encode())
