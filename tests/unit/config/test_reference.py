"""The files people read first say everything, and what they say is so."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from runner.config import advice, dump, load_config
from runner.config.duration import format_duration
from runner.config.errors import KeyPath
from runner.config.keys import known_keys, schema_keys
from runner.config.schema import Config
from runner.config.size import format_size
from runner.config.source import parse_source
from runner.config.substitution import Substitution
from runner.errors import ConfigError

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "configs" / "reference.yaml"
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
    text = REFERENCE.read_text()
    # The sqlite strategy goes with no PostgreSQL, and one way of auth with no other: these stand there as comments.
    text = re.sub(r"^  # - sqlite:\n  #  ", "  - sqlite:\n   ", text, flags=re.MULTILINE)
    text = re.sub(r"^( +)# (bearer|basic|tls): ", r"\1\2: ", text, flags=re.MULTILINE)
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


def test_the_documentation_lists_every_key_with_its_default() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+) \| (.*) \|$", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE
    )
    documented = {key: default for key, _, default in rows if key in KEYS}
    assert documented == {key: default_text(key, info) for key, info in KEYS.items()}


def default_text(key: str, info: FieldInfo) -> str:
    if key == "strategies":
        return "follows the DSN"
    if info.is_required():
        return "required"
    match info.get_default(call_default_factory=True):
        case BaseModel():
            return ""
        case timedelta() as duration:
            return f"`{format_duration(duration)}`"
        case None:
            return "`null`"
        case bool() as value:
            return f"`{str(value).lower()}`"
        case datetime() as moment:
            return f"`{moment.isoformat().replace('+00:00', 'Z')}`"
        case ():
            return "`[]`"
        case "":
            return '`""`'
        case int() as size if key == "api.limits.body":
            return f"`{format_size(size)}`"
        case value:
            return f"`{value}`"


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
