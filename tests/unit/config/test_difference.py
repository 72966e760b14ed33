"""The difference of two configurations, and what a running process can take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.config import Config, load_config
from runner.config.difference import Change, difference

BASE: dict[str, Any] = {
    "deployment_id": "shop",
    "storage": {"dsn": "postgresql://me:topsecret1@db.example/shop"},
    "strategies": [
        {"polling": "30s"},
        {"nats": {"servers": ["nats://n1:4222"], "user": "me", "password": "topsecret2"}},
    ],
    "sinks": {"log": "stdout", "crm": {"webhook": {"url": "https://crm.example/in", "timeout": "5s"}}},
    "subscriptions": [
        {"name": "a", "types": ["a.*"], "sink": "log"},
        {"name": "b", "types": ["b.*"], "sink": "crm", "retry": {"max_attempts": 3}},
    ],
    "schedules": [{"name": "daily", "cron": "@daily", "event": {"type": "day"}}],
    "types": {},
    "api": {"tokens": [{"name": "ops", "secret": "0123456789abcdef0123456789", "scopes": ["admin"]}]},
}


def loaded(tmp_path: Path, **changes: Any) -> Config:
    path = tmp_path / "bus.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return load_config(path)


def changes(tmp_path: Path, **changed: Any) -> list[Change]:
    return list(difference(loaded(tmp_path), loaded(tmp_path, **changed)).changes)


def test_nothing_changed(tmp_path: Path) -> None:
    assert changes(tmp_path) == []
    assert changes(tmp_path, include="parts/*.yaml") == []
    assert changes(tmp_path, subscriptions=BASE["subscriptions"][::-1], log={"level": "info"}) == []


@pytest.mark.parametrize(
    ("changed", "path", "kind"),
    [
        ({"subscriptions": BASE["subscriptions"][:1]}, "subscriptions[b]", "removed"),
        ({"subscriptions": [*BASE["subscriptions"], {"name": "c", "sink": "log"}]}, "subscriptions[c]", "added"),
        ({"sinks": {**BASE["sinks"], "new": "stdout"}}, "sinks.new", "added"),
        ({"sinks": {**BASE["sinks"], "crm": "stdout"}}, "sinks.crm", "changed"),
        ({"schedules": []}, "schedules[daily]", "removed"),
        ({"retry": {"max_attempts": 7}}, "retry.max_attempts", "changed"),
        ({"breaker": "off"}, "breaker", "changed"),
        ({"retention": {"delivered": "1d"}}, "retention.delivered", "changed"),
        ({"log": {"level": "debug"}}, "log.level", "changed"),
        ({"lifecycle": True}, "lifecycle", "changed"),
        ({"sealing": {"keys": ["topsecret-topsecret-topsecret-topsecret"]}}, "sealing", "changed"),
        ({"destinations": {"ports": None}}, "destinations.ports", "changed"),
        ({"destinations": {"allow": {"http": True}}}, "destinations.allow.http", "changed"),
        ({"worker": {"shutdown_grace": "3s"}}, "worker.shutdown_grace", "changed"),
        ({"storage": {**BASE["storage"], "start_timeout": "3s"}}, "storage.start_timeout", "changed"),
        ({"storage": {"dsn": "postgresql://me:topsecret9@db.example/shop"}}, "storage.dsn", "changed"),
    ],
)
def test_a_running_process_takes_it(tmp_path: Path, changed: dict[str, Any], path: str, kind: str) -> None:
    [change] = changes(tmp_path, **changed)
    assert (change.path, change.kind, change.live) == (path, kind, True)


@pytest.mark.parametrize(
    ("changed", "path"),
    [
        ({"deployment_id": "other"}, "deployment_id"),
        ({"subject": "mesh.x.notify"}, "subject"),
        ({"storage": {"dsn": "postgresql://me:topsecret1@elsewhere/shop"}}, "storage.dsn"),
        ({"storage": {"dsn": "postgresql://you:topsecret1@db.example/shop"}}, "storage.dsn"),
        ({"storage": {**BASE["storage"], "pool": 9}}, "storage.pool"),
        ({"storage": {**BASE["storage"], "schema": "x"}}, "storage.schema"),
        ({"strategies": ["polling"]}, "strategies"),
        ({"strategies": [{"polling": "7s"}, BASE["strategies"][1]]}, "strategies[0].polling.every"),
        ({"worker": {"concurrency": 3}}, "worker.concurrency"),
        ({"worker": {"enabled": False}}, "worker.enabled"),
        ({"api": {**BASE["api"], "listen": "127.0.0.1:1"}}, "api.listen"),
        ({"api": None}, "api"),
        ({"api": {}}, "api.tokens[ops]"),
        ({"tracing": "otel"}, "tracing"),
    ],
)
def test_it_takes_a_restart(tmp_path: Path, changed: dict[str, Any], path: str) -> None:
    [change] = changes(tmp_path, **changed)
    assert (change.path, change.live) == (path, False)
    assert difference(loaded(tmp_path), loaded(tmp_path, **changed)).refused == [change]


def test_one_key_of_a_subscription_is_named_by_its_name(tmp_path: Path) -> None:
    one = {"name": "b", "types": ["b.*", "c"], "sink": "crm", "retry": {"max_attempts": 4}}
    found = changes(tmp_path, subscriptions=[one, BASE["subscriptions"][0]])
    assert [(each.path, each.was, each.now) for each in found] == [
        ("subscriptions[b].types", ["b.*"], ["b.*", "c"]),
        ("subscriptions[b].retry.max_attempts", 3, 4),
    ]


def test_the_login_of_nats_is_taken_and_its_servers_are_not(tmp_path: Path) -> None:
    nats = BASE["strategies"][1]["nats"]
    found = changes(tmp_path, strategies=["polling", {"nats": {**nats, "password": "topsecret9"}}])
    assert [(each.path, each.live) for each in found] == [("strategies[1].nats.password", True)]
    [change] = changes(tmp_path, strategies=["polling", {"nats": {**nats, "servers": ["nats://n2:4222"]}}])
    assert not change.live


def test_no_secret_is_shown(tmp_path: Path) -> None:
    tokens = [{"name": "ops", "secret": f"fedcba9876543210012345678{n}", "scopes": ["admin"]} for n in (1, 2)]
    found = changes(
        tmp_path,
        storage={"dsn": "postgresql://me:topsecret9@db.example/shop"},
        sinks={
            **BASE["sinks"],
            "crm": {"webhook": {"url": "https://crm.example/in", "headers": {"x-key": "topsecret7"}}},
        },
        api={"tokens": tokens},
    )
    assert [each.path for each in found][-2:] == ["api.tokens[ops].secret", "api.tokens[ops#2]"]
    shown = repr([each.to_json() for each in found]) + "".join(map(str, found))
    assert "topsecret" not in shown
    assert "fedcba" not in shown
