"""The documented schemas of what is put refuse and accept what the server does."""

from __future__ import annotations

from secrets import token_hex
from typing import Any

import jsonschema_rs
import pytest
import yaml

from runner.api.answers import ANSWERS
from runner.api.definitions import PLACE, check, schemas
from runner.config.written import read_schedule, read_subscription
from runner.errors import ConfigError
from runner.log import redaction
from tests.support.documents import ROOT

TO = {"sink": "log"}
AT = {"webhook": {"url": "https://crm.example/events"}}
DAY = {"cron": "@daily", "event": {"type": "day"}}
PULSE = {"every": "15m", "event": {"type": "pulse"}}

SUBSCRIPTIONS: list[dict[str, Any]] = [
    TO,
    TO | {"name": "mine", "destination": None, "expires_at": "2037-01-01T00:00:00Z"},
    TO | {"types": "order.*"},
    TO | {"types": ["order.*", "a"], "source": "/shop*", "filter": {"exact": {"type": "a"}}},
    TO | {"concurrency": 1, "timeout": "1h30m", "batch": None, "rate": "20/s", "order_by": "subject"},
    TO | {"retry": {"max_attempts": 3, "delay": "1.5s", "jitter": 0, "max_age": None}},
    TO | {"retry": {"schedule": ["1s", "10m"]}},
    TO | {"breaker": "off"},
    TO | {"breaker": False},
    TO | {"breaker": None},
    TO | {"breaker": {"failures": 5, "pause": "30s"}, "dead_letter": "log"},
    {"destination": AT},
    {"destination": {"webhook": "https://crm.example"}, "sink": None},
    {
        "destination": {
            "webhook": AT["webhook"] | {"tls": None, "allow": None, "mode": "structured", "permanent": [404]}
        }
    },
    {"destination": {"webhook": AT["webhook"] | {"auth": {"bearer": "t"}, "headers": {"X-A": "b"}, "connections": 5}}},
    {"destination": {"webhook": AT["webhook"] | {"handshake": "required", "deferred": "10m", "gone": "pause"}}},
]
NO_SUBSCRIPTIONS: list[dict[str, Any]] = [
    {},
    {"sink": None},
    {"sink": 5},
    {"destination": None},
    TO | {"destination": AT},
    TO | {"name": "a b"},
    TO | {"nope": 1},
    TO | {"types": []},
    TO | {"types": [5]},
    TO | {"types": "a b"},
    TO | {"source": ""},
    TO | {"filter": "a"},
    TO | {"concurrency": 0},
    TO | {"concurrency": "64"},
    TO | {"concurrency": 64.5},
    TO | {"concurrency": True},
    TO | {"concurrency": None},
    TO | {"timeout": 25},
    TO | {"timeout": "25"},
    TO | {"timeout": "1h, 30m"},
    TO | {"batch": 0},
    TO | {"batch": 1001},
    TO | {"rate": "20"},
    TO | {"rate": "0/s"},
    TO | {"retry": None},
    TO | {"retry": {"max_attempts": "3"}},
    TO | {"retry": {"jitter": "0.5"}},
    TO | {"retry": {"jitter": 2}},
    TO | {"retry": {"schedule": []}},
    TO | {"retry": {"tries": 3}},
    TO | {"breaker": True},
    TO | {"breaker": "on"},
    TO | {"breaker": {"failures": 0}},
    TO | {"order_by": "Sub"},
    TO | {"expires_at": 5},
    {"destination": "webhook"},
    {"destination": {}},
    {"destination": {"webhook": None}},
    {"destination": {"webhook": {}}},
    {"destination": {"webhook": ["https://crm.example"]}},
    {"destination": {"python": "a:b"}},
    {"destination": {"webhook": AT["webhook"] | {"mode": "batched"}}},
    {"destination": {"webhook": AT["webhook"] | {"permanent": [200]}}},
    {"destination": {"webhook": AT["webhook"] | {"permanent": ["404"]}}},
    {"destination": {"webhook": AT["webhook"] | {"connections": 0}}},
    {"destination": {"webhook": AT["webhook"] | {"headers": {"X-A": 5}}}},
    {"destination": {"webhook": AT["webhook"] | {"handshake": True}}},
    {"destination": {"webhook": AT["webhook"] | {"handshake": "warn", "origin": "a b"}}},
]
SCHEDULES: list[dict[str, Any]] = [
    DAY,
    PULSE | {"name": "mine", "cron": None, "anchor": "2026-01-01T00:00:00Z", "jitter": "5m"},
    DAY | {"timezone": "Europe/Paris", "catch_up": "all", "window": "2d", "overlap": "skip", "start_at": None},
    PULSE | {"event": {"type": "a", "source": "/s", "subject": None, "data": [1, {"a": None}]}},
]
NO_SCHEDULES: list[dict[str, Any]] = [
    {},
    {"cron": "@daily"},
    {"event": {"type": "a"}},
    DAY | PULSE,
    DAY | {"cron": None},
    DAY | {"cron": 5},
    PULSE | {"every": 900},
    PULSE | {"jitter": None},
    DAY | {"catch_up": "some"},
    DAY | {"event": {}},
    DAY | {"event": {"type": ""}},
    DAY | {"event": {"type": "a", "id": "1"}},
    DAY | {"event": "a"},
    DAY | {"retries": 5},
]


def valid(name: str, body: dict[str, Any]) -> bool:
    schema = {"$ref": f"{PLACE}{name}", "components": {"schemas": schemas()}}
    return bool(jsonschema_rs.validator_for(schema).is_valid(body))


def taken(name: str, body: dict[str, Any]) -> bool:
    """Return whether the server takes the body."""

    def read() -> object:
        if name == "ScheduleBody":
            return read_schedule("mine", body)
        return read_subscription("mine", body, ["log"])

    try:
        check(name, body, read)
        read()
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("body", SUBSCRIPTIONS, ids=str)
def test_subscriptions(body: dict[str, Any]) -> None:
    assert taken("SubscriptionBody", body)
    assert valid("SubscriptionBody", body)


@pytest.mark.parametrize("body", NO_SUBSCRIPTIONS, ids=str)
def test_what_is_no_subscription(body: dict[str, Any]) -> None:
    assert not taken("SubscriptionBody", body)
    assert not valid("SubscriptionBody", body)


@pytest.mark.parametrize("body", SCHEDULES, ids=str)
def test_schedules(body: dict[str, Any]) -> None:
    assert taken("ScheduleBody", body)
    assert valid("ScheduleBody", body)


@pytest.mark.parametrize("body", NO_SCHEDULES, ids=str)
def test_what_is_no_schedule(body: dict[str, Any]) -> None:
    assert not taken("ScheduleBody", body)
    assert not valid("ScheduleBody", body)


def test_every_key_of_the_reference_is_in_the_schemas() -> None:
    reference = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text())
    bodies = schemas()
    for section, name in (("subscriptions", "SubscriptionBody"), ("schedules", "ScheduleBody")):
        given = {key for entry in reference[section] for key in entry}
        assert given <= bodies[name]["properties"].keys()
    webhook = {key for sink in reference["sinks"].values() if "webhook" in sink for key in sink["webhook"]}
    assert webhook <= bodies["Webhook"]["properties"].keys()


def test_no_schema_has_the_name_of_another() -> None:
    assert not ANSWERS.keys() & schemas().keys()


def test_a_refusal_repeats_no_value_and_remembers_no_secret() -> None:
    secret = token_hex()  # known to no other test
    body = {"concurrency": "64", "destination": {"webhook": AT["webhook"] | {"auth": {"bearer": secret}}}}
    with pytest.raises(ConfigError, match=r"concurrency: not what SubscriptionBody in /openapi\.json allows") as caught:
        check("SubscriptionBody", body, lambda: read_subscription("mine", body, []))
    assert secret not in str(caught.value)
    assert redaction.redacted(secret) == secret
