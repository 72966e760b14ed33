from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from runner.builder import nats_subjects
from runner.config import Config, Secret, advice, dump, load_config
from runner.config.api import Api
from runner.config.dsn import Dsn
from runner.config.json_schema import json_schema
from runner.config.plugin import Plugin
from runner.errors import ConfigError
from runner.policies.breaker import BreakerPolicy
from runner.policies.retry import RetryPolicy
from runner.sinks.python import PythonOptions
from runner.sinks.webhook import WebhookOptions
from runner.strategies.nats import NatsOptions
from runner.strategies.polling import PollingOptions
from runner.strategies.postgres import PostgresOptions
from runner.strategies.sqlite import SqliteOptions
from runner.subscription import Subscription

Load = Callable[..., Config]

MINIMAL = "deployment_id: d\nstorage: {dsn: 'sqlite:///x.db'}\n"


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, **environ: str) -> Config:
        path = tmp_path / "f.yaml"
        path.write_text(text)
        return load_config(path, environ)

    return load


def test_defaults(load: Load, tmp_path: Path) -> None:
    config = load(MINIMAL)
    assert config.deployment_id == "d"
    assert config.signal_subject == "mesh.d.events.notify"
    assert config.storage.dsn == Dsn(scheme="sqlite", path=tmp_path / "x.db")
    assert (config.storage.schema_name, config.storage.pool, config.storage.migrate) == (None, 5, True)
    assert config.worker.lease == timedelta(seconds=30)
    assert config.to_subscriptions() == ()
    assert advice(config) == []


def test_without_strategies_the_stack_follows_the_dsn(load: Load) -> None:
    polling = Plugin("polling", PollingOptions())
    assert load(MINIMAL).strategies == (polling, Plugin("sqlite", SqliteOptions()))
    postgres = "deployment_id: d\nstorage: {dsn: 'postgresql://h/b', pgbouncer: %s}\nstrategies: null\n"
    assert load(postgres % "false").strategies == (polling, Plugin("postgres", PostgresOptions()))
    # LISTEN would be silent behind pgbouncer.
    assert load(postgres % "true").strategies == (polling,)


def test_the_three_forms_of_a_plug_in(load: Load) -> None:
    text = MINIMAL + "strategies: [polling, polling: , {polling: 5s}, {polling: {every: 5s, deaf: 1s}}]\n"
    options = [plugin.options for plugin in load(text).strategies]
    five = timedelta(seconds=5)
    assert options == [
        PollingOptions(),
        PollingOptions(),
        PollingOptions(every=five),
        PollingOptions(every=five, deaf=timedelta(seconds=1)),
    ]


def test_third_party_plug_ins_get_their_options_as_they_are(load: Load) -> None:
    config = load(
        MINIMAL + "sinks: {a: {'json:JSONDecoder': {strict: no, key: '${X}'}}, b: json:JSONDecoder}", X="hunter2"
    )
    assert config.sinks["a"] == Plugin("json:JSONDecoder", {"strict": False, "key": "hunter2"})
    assert config.sinks["b"] == Plugin("json:JSONDecoder", {})
    assert dump(config)["sinks"]["a"] == {"json:JSONDecoder": {"strict": "***", "key": "***"}}


def test_callables_come_from_the_working_directory(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local_handlers.py").write_text("class Orders:\n    @staticmethod\n    def handle(event): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    config = load(MINIMAL + "sinks: {a: {python: 'local_handlers:Orders.handle'}}")
    assert config.sinks["a"].options == PythonOptions(target="local_handlers:Orders.handle")


def test_values_from_outside_become_what_their_field_is(load: Load) -> None:
    text = MINIMAL + "worker: {batch: '${N}', lease: '${D}'}\nretry: {jitter: '${J}'}\nlog: {level: '${L}'}\n"
    config = load(text.replace("x.db'}", "x.db', migrate: '${M}'}"), N="7", D="5s", J="0.5", L="debug", M="false")
    assert (config.worker.batch, config.worker.lease, config.retry.jitter) == (7, timedelta(seconds=5), 0.5)
    assert (config.storage.migrate, config.log.level) == (False, "debug")


def test_subscriptions_with_the_retry_defaults_merged_field_by_field(load: Load) -> None:
    text = (
        MINIMAL
        + """\
sinks: {s: stdout}
retry: {max_attempts: 3, delay: 2s}
subscriptions:
  - {name: a, sink: s}
  - {name: b, sink: s, types: order.*, source: /shop, filter: {prefix: {subject: eu/}}, concurrency: 2, timeout: 5s,
     retry: {delay: 0s, jitter: 0}}
"""
    )
    config = load(text)
    seconds = timedelta(seconds=1)
    assert config.to_subscriptions() == (
        Subscription(name="a", sink="s", retry=RetryPolicy(max_attempts=3, delay=2 * seconds)),
        Subscription(
            name="b",
            sink="s",
            types=("order.*",),
            source="/shop",
            filter={"prefix": {"subject": "eu/"}},
            concurrency=2,
            timeout=5 * seconds,
            retry=RetryPolicy(max_attempts=3, delay=0 * seconds, jitter=0),
        ),
    )
    assert dump(config)["subscriptions"][1]["retry"] == {
        "max_attempts": 3,
        "delay": "0s",
        "max_delay": "1h",
        "jitter": 0,
        "schedule": None,
        "max_age": None,
    }


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("defaults", "own", "expected"),
    [
        ("{}", "{schedule: [1s, 10s]}", RetryPolicy(schedule=(SECOND, 10 * SECOND), max_attempts=3)),
        ("{}", "{schedule: [1s], max_attempts: 9}", RetryPolicy(schedule=(SECOND,), max_attempts=9)),
        ("{schedule: [1s]}", "{}", RetryPolicy(schedule=(SECOND,), max_attempts=2)),
        ("{schedule: [1s, 1s], max_attempts: 2}", "{}", RetryPolicy(schedule=(SECOND, SECOND), max_attempts=2)),
        ("{max_attempts: 2}", "{schedule: [1s, 1s]}", RetryPolicy(schedule=(SECOND, SECOND), max_attempts=3)),
        ("{schedule: [1s]}", "{delay: 2s}", RetryPolicy(delay=2 * SECOND)),
        ("{schedule: [1s], max_attempts: 2}", "{max_delay: 2s}", RetryPolicy(max_delay=2 * SECOND, max_attempts=2)),
        ("{max_age: 1m}", "{jitter: 0}", RetryPolicy(max_age=60 * SECOND, jitter=0)),
        ("{max_age: 1m}", "{max_age: 2s}", RetryPolicy(max_age=2 * SECOND)),
        ("{delay: 2h}", "{jitter: 0}", RetryPolicy(delay=7200 * SECOND, max_delay=7200 * SECOND, jitter=0)),
        ("{max_delay: 10s}", "{delay: 20s}", RetryPolicy(delay=20 * SECOND, max_delay=20 * SECOND)),
        ("{delay: 20s}", "{max_delay: 10s}", RetryPolicy(delay=10 * SECOND, max_delay=10 * SECOND)),
        ("{}", "{max_delay: 10ms}", RetryPolicy(delay=SECOND / 100, max_delay=SECOND / 100)),
        ("{}", f"{{schedule: [{', '.join(['1s'] * 30)}]}}", RetryPolicy(schedule=(SECOND,) * 30, max_attempts=31)),
    ],
)
def test_waits_of_its_own_replace_those_of_the_defaults(
    load: Load, defaults: str, own: str, expected: RetryPolicy
) -> None:
    text = MINIMAL + f"sinks: {{s: stdout}}\nretry: {defaults}\nsubscriptions: [{{name: a, sink: s, retry: {own}}}]"
    config = load(text)
    [subscription] = config.to_subscriptions()
    assert subscription.retry == expected
    # What is shown can be loaded again, and is the same.
    assert load(json.dumps(dump(config))).to_subscriptions() == config.to_subscriptions()


@pytest.mark.parametrize(
    ("top", "own", "expected"),
    [
        ("", "", BreakerPolicy()),
        ("breaker: {failures: 3}", "", BreakerPolicy(failures=3)),
        ("breaker: {failures: 3}", "breaker: {pause: 1s}", BreakerPolicy(failures=3, pause=timedelta(seconds=1))),
        ("breaker: {max_pause: 1h}", "breaker: off", None),
        ("breaker: {pause: 1h}", "", BreakerPolicy(pause=3600 * SECOND, max_pause=3600 * SECOND)),
        ("breaker: {pause: 1h}", "breaker: {max_pause: 2s}", BreakerPolicy(pause=2 * SECOND, max_pause=2 * SECOND)),
        ("breaker: off", "breaker: {pause: 1h}", BreakerPolicy(pause=3600 * SECOND, max_pause=3600 * SECOND)),
        ("breaker: off", "", None),
        ("breaker: null", "breaker: {}", None),
        ("breaker: 'off'", "breaker: {failures: 3}", BreakerPolicy(failures=3)),
    ],
)
def test_the_breaker_is_merged_field_by_field_or_off(
    load: Load, top: str, own: str, expected: BreakerPolicy | None
) -> None:
    config = load(f"{MINIMAL}sinks: {{s: stdout}}\nsubscriptions:\n  - {{name: a, sink: s, {own}}}\n{top}\n")
    assert [each.breaker for each in config.to_subscriptions()] == [expected]
    assert load(json.dumps(dump(config))).to_subscriptions() == config.to_subscriptions()


def test_the_defaults_of_the_schema_are_those_of_the_values(load: Load) -> None:
    config = load(MINIMAL + "sinks: {s: stdout}\nsubscriptions: [{name: a, sink: s}]")
    assert config.to_subscriptions() == (Subscription(name="a", sink="s"),)


# --- nats ------------------------------------------------------------------------------------------


def nats(load: Load, options: str) -> NatsOptions:
    options_of = load(MINIMAL + f"strategies: [{{nats: {options}}}]").strategies[0].options
    assert isinstance(options_of, NatsOptions)
    return options_of


def test_servers_in_all_spellings(load: Load) -> None:
    assert nats(load, "'nats://h:4222'").servers == ("nats://h:4222",)
    assert nats(load, "[h, 'tls://i:1']").servers == ("nats://h", "tls://i:1")
    assert nats(load, "{servers: 'nats://h:1,nats://i:2'}").servers == ("nats://h:1", "nats://i:2")


def test_a_login_in_a_url_is_moved_out_and_decoded(load: Load) -> None:
    options = nats(load, "'nats://me:hunter%402@h:1,nats://me:hunter%402@i:2'")
    assert options.servers == ("nats://h:1", "nats://i:2")
    assert (options.user, options.password) == ("me", Secret("hunter@2"))
    assert nats(load, "'nats://tok@h'").token == Secret("tok")
    assert "hunter" not in repr(options)


def test_keys_without_a_value_are_as_good_as_left_out(load: Load) -> None:
    options = nats(load, "{servers: 'nats://me:pw@h', user: null, password: ~, credentials: , token: null, tls: null}")
    assert (options.user, options.credentials, options.token, options.tls) == ("me", None, None, None)


def test_two_logins_in_urls_are_a_fault(load: Load) -> None:
    with pytest.raises(ConfigError, match="a user is given in several ways"):
        nats(load, "'nats://a:b@h:1,nats://c:d@i:2'")


def test_a_nats_sink_without_servers_uses_the_strategy(load: Load) -> None:
    config = load(
        MINIMAL
        + "strategies: [polling, {nats: 'nats://h'}]\n"
        + "sinks: {a: {nats: 'x.{type}'}, b: {nats: {subject: y, servers: 'nats://i', tls: {ca: ca.pem}}}}"
    )
    reached = {options.servers: subjects for options, subjects in nats_subjects(config).items()}
    assert reached == {("nats://h",): ["mesh.d.events.notify", "x.runner-check"], ("nats://i",): ["y"]}


# --- showing ---------------------------------------------------------------------------------------

SECRETS = """\
deployment_id: d
storage: {dsn: 'postgresql://me:hunter2@h/b'}
strategies: [{nats: 'nats://me:hunter2@h'}, {postgres: 'postgresql://me:hunter2@direct/b'}]
sinks:
  a: {webhook: {url: 'https://h/path?key=hunter2', headers: {Authorization: Bearer hunter2, X-Key: '${X}'}}}
  b: {nats: {subject: s, servers: 'nats://hunter2@h'}}
"""


def test_no_secret_is_shown(load: Load) -> None:
    config = load(SECRETS, X="hunter2")
    assert "hunter2" not in json.dumps(dump(config))
    assert "hunter2" not in config.model_dump_json()
    shown = dump(config)
    assert shown["storage"]["dsn"] == "postgresql://me:***@h:5432/b"
    assert shown["strategies"][0]["nats"]["password"] == "***"
    assert shown["sinks"]["a"]["webhook"]["url"] == "https://h/path?***"
    assert shown["sinks"]["a"]["webhook"]["headers"] == {"Authorization": "***", "X-Key": "***"}
    webhook = config.sinks["a"].options
    assert isinstance(webhook, WebhookOptions)
    assert webhook.headers == {"Authorization": Secret("Bearer hunter2"), "X-Key": Secret("hunter2")}


def test_what_is_shown_loads_again(load: Load) -> None:
    config = load(
        MINIMAL
        + "strategies: [polling, {nats: 'nats://h'}]\n"
        + "sinks: {s: stdout, t: {nats: x}}\nsubscriptions: [{name: a, sink: s, rate: 20/s}]"
    )
    assert dump(load(json.dumps(dump(config)))) == dump(config)


def test_the_json_schema_resolves_and_describes_every_key(load: Load) -> None:
    schema = json_schema()
    references = set(_references(schema))
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}
    assert set(schema["required"]) == {"deployment_id", "storage"}
    for model in [schema, *schema["$defs"].values()]:
        assert all("description" in field or "$ref" in field for field in model.get("properties", {}).values())


def test_the_json_schema_bounds_what_a_subscription_overrides() -> None:
    definitions = json_schema()["$defs"]
    for section, override in (("Retry", "RetryOverride"), ("Breaker", "BreakerOverride")):
        for name, field in definitions[section]["properties"].items():
            forms = field.get("anyOf") or [
                {key: field[key] for key in field.keys() - {"default", "description", "title"}}
            ]
            optional = [form for form in definitions[override]["properties"][name]["anyOf"] if form != {"type": "null"}]
            assert optional == [form for form in forms if form != {"type": "null"}], name


def test_the_json_schema_speaks_as_the_file_does() -> None:
    worker = json_schema()["$defs"]["Worker"]["properties"]
    assert (worker["lease"]["default"], worker["lease"]["type"]) == ("30s", "string")
    assert worker["batch"]["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 10_000},
        {"type": "string", "pattern": r"\$\{.*\}"},
    ]
    assert '"PT' not in json.dumps(json_schema())


def _references(node: object) -> list[str]:
    if isinstance(node, list):
        return [reference for item in node for reference in _references(item)]
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + _references(list(node.values()))
    return []


def test_a_section_that_is_null_is_none(load: Load) -> None:
    config = load(MINIMAL + "sinks: {u: {webhook: {url: 'https://h', secret: null}}}\nschedules: []\napi: null\n")
    assert "api" not in dump(config)
    assert config.sinks["u"].kind == "webhook"


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (Api, {"listen": "0.0.0.0:80"}, "tokens: expected at least one, because listen is not a loopback address"),
        (Api, {"listen": "80"}, "expected address:port or unix:/path, such as 127.0.0.1:8080, .*, got '80'"),
    ],
)
def test_parts_by_themselves(model: type[BaseModel], data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(data)


def test_loading_imports_no_driver() -> None:
    code = (
        "import sys; import runner.config;"
        "heavy = ('sqlalchemy', 'asyncpg', 'aiosqlite', 'nats', 'aiohappyeyeballs');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_one_who_only_publishes_need_not_have_the_handlers(tmp_path: Path) -> None:
    path = tmp_path / "bus.yaml"
    path.write_text(
        "deployment_id: a\nstorage: {dsn: sqlite:///a.db}\n"
        "sinks: {one: {python: 'not_here.at_all:handle'}, two: {'not_here:Kafka': {}}}\n"
    )
    assert set(load_config(path, imports=False).sinks) == {"one", "two"}
    with pytest.raises(ConfigError, match="cannot import 'not_here"):
        load_config(path)
    path.write_text(path.read_text().replace("not_here.at_all:handle", "no reference"))
    with pytest.raises(ConfigError, match="expected module:function"):
        load_config(path, imports=False)
