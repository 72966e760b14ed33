"""The files people read first say everything, and what they say is so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from runner.config import advice, dump, load_config
from runner.config.errors import KeyPath
from runner.config.fields import Context
from runner.config.keys import known_keys, schema_keys
from runner.config.schema import Config
from runner.config.source import parse_source
from runner.config.substitution import Substitution
from runner.errors import ConfigError
from tests.support.reference.keys import EXAMPLES, REFERENCE, default_text, type_text, uncommented, values_by_key

ROOT = Path(__file__).parents[3]
KEYS = dict(schema_keys(Config))

PROD = {
    "DEPLOYMENT_ID": "orders-prod",
    "DATABASE_URL": "postgresql://runner:hunter2@db1,db2/bus?sslmode=verify-full",
    "NATS_URL": "tls://n1:4222,tls://n2:4222",
}


def normal(path: KeyPath) -> str:
    """Return a path of a file in the form the schema's keys have."""
    text = ""
    for index, step in enumerate(path):
        step = "<name>" if index == 1 and path[0] in ("sinks", "types") else step
        text += "[]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".")


def test_every_key_is_in_the_reference() -> None:
    text = uncommented(REFERENCE.read_text())
    source = parse_source(text.encode(), Substitution({}, ROOT))
    assert source.faults == []
    assert set(KEYS) - {normal(path) for path in source.positions} == set()


def test_the_reference_loads_and_shows_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "minimal.yaml").write_text("deployment_id: d\nstorage: {dsn: 'postgresql://h/b'}")
    minimal, reference = dump(load_config(tmp_path / "minimal.yaml", {})), dump(load_config(REFERENCE, {}))
    for document in (minimal, reference):
        del document["storage"]["dsn"]
    for key in ("subject", "storage", "worker", "retry", "retention", "log"):
        assert reference[key] == minimal[key], key
    assert reference["strategies"][0] == minimal["strategies"][0]


def test_dev_and_prod_load_without_a_warning() -> None:
    dev = load_config(ROOT / "configs" / "dev.yaml", {})
    assert dev.storage.dsn.path == ROOT / "runner-dev.db"
    assert [plugin.kind for plugin in dev.strategies] == ["polling", "sqlite"]
    assert advice(dev) == []
    times = load_config(ROOT / "configs" / "schedules.yaml", {})
    assert [schedule.name for schedule in times.to_schedules()] == ["pulse", "nightly", "cleanup"]
    assert advice(times) == []
    prod = load_config(ROOT / "configs" / "prod.yaml", PROD)
    assert prod.storage.dsn.sslmode == "verify-full"
    assert [plugin.kind for plugin in prod.strategies] == ["polling", "nats"]
    assert advice(prod) == []
    assert "hunter2" not in str(dump(prod))


@pytest.mark.parametrize("missing", PROD)
def test_prod_says_what_is_not_set(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable {missing} is not set: ") as caught:
        load_config(ROOT / "configs" / "prod.yaml", {key: value for key, value in PROD.items() if key != missing})
    assert len(caught.value.faults) == 1


def test_every_key_has_an_example_that_the_schema_takes() -> None:
    given = values_by_key(yaml.safe_load(uncommented(REFERENCE.read_text())))
    empty = {key for key, value in given.items() if value in (None, [], {}, "")}
    leaves = {key for key in KEYS if not any(other.startswith((f"{key}.", f"{key}[]")) for other in KEYS)}
    assert leaves - (given.keys() - empty) - EXAMPLES.keys() == set()
    assert EXAMPLES.keys() <= leaves
    for key, example in EXAMPLES.items():
        info = KEYS[key]
        annotated: Any = Annotated[(info.annotation, key, *info.metadata)]
        field: TypeAdapter[Any] = TypeAdapter(annotated)
        if not str(example).startswith("${"):  # text from outside is checked when it is there
            assert field.validate_python(example, context=Context(imports=False)) is not None, key


@pytest.mark.parametrize(
    ("key", "type_", "default"),
    [
        ("storage.pool", "whole number, 1 to 500", "`5`"),
        ("storage.start_timeout", "duration", "`30s`"),
        ("storage.tls", "`optional` or `required` or `verify-ca` or `verify-full`", "`optional`"),
        ("worker.lease", "duration, from 1s", "`30s`"),
        ("retry.jitter", "number, 0 to 1", "`0.2`"),
        ("sinks.<name>.webhook.url", "URL", "required"),
        ("sinks.<name>.webhook.permanent", "list: whole number, 300 to 599", "`[]`"),
        ("subscriptions[].types", "text, or a list of them", "`null`"),
        ("subscriptions[].sink", "name of a sink", "required"),
        ("subscriptions[].retry", "section", ""),
        ("api.limits.body", "size", "`1MiB`"),
        ("destinations.ports", "list: whole number, 1 to 65535", "`[443, 8443]`"),
        ("schedules[].anchor", "time", "`1970-01-01T00:00:00Z`"),
    ],
)
def test_types_and_defaults_are_told_in_words(key: str, type_: str, default: str) -> None:
    info = KEYS[key]
    assert type_text(info.annotation, info.metadata) == type_
    assert default_text(key, info) == default


def test_every_key_is_described() -> None:
    assert [key for key, info in KEYS.items() if not info.description] == []


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((), {"deployment_id", "subject", "storage", "strategies", "sinks", "subscriptions", "schedules"}),
        (("strategies", 3, "polling"), {"every", "deaf"}),
        (("sinks", "anything", "webhook"), {"url", "secret", "timeout", "headers"}),
        (("subscriptions", 0, "retry"), {"max_attempts", "delay", "max_delay", "jitter"}),
        (("sinks", "a", "webhook", "headers"), set()),
        (("no", "such", 1), set()),
    ],
)
def test_known_keys(path: KeyPath, expected: set[Any]) -> None:
    known = set(known_keys(Config, path))
    assert known >= expected
    assert bool(known) == bool(expected)
