"""A secret in every place of a file where one can stand, in right and wrong shapes, is never shown."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from pydantic import BaseModel

from runner.builder import build
from runner.cli.check import _plan
from runner.config.fields import Model
from runner.config.kinds import SINKS, STRATEGIES
from runner.config.loader import dump, load_config
from runner.config.schema import Config
from runner.config.secret import Secret
from runner.errors import RunnerError
from runner.log import redaction
from tests.support.secrets import forget_everything, nothing_known

CANARY = "cAn4ry9X7kQ2mZ81wP"
_ONE_IN = 7
_BY_NAME = {"dsn", "servers", "url"}  # what is no secret, and may hold one

Place = tuple[str | int, ...]


def holds_secret(annotation: Any) -> bool:
    return annotation is Secret or any(map(holds_secret, typing.get_args(annotation)))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)


def places(model: type[BaseModel], path: Place) -> Iterator[Place]:
    """Yield the path of every field of the schema that may hold a secret."""
    for name, field in model.model_fields.items():
        here = (*path, field.alias or name)
        if holds_secret(field.annotation) or any(map(holds_secret, field.metadata)):
            yield (*here, "X-Key") if "Mapping" in str(field.annotation) else here
        elif name in _BY_NAME:
            yield here
        for inner in models_in(field.annotation):
            if inner not in (*STRATEGIES.values(), *SINKS.values()):
                yield from places(inner, here)


PLACES = [
    *places(Config, ()),
    *(place for kind, options in STRATEGIES.items() for place in places(options, ("strategies", 0, kind))),
    *(place for kind, options in SINKS.items() for place in places(options, ("sinks", "crm", kind))),
]

SPELLINGS = [
    "{}",
    "postgresql://me:{}@db.example/shop",
    "postgresql://me@db.example/shop?password={}",
    "postgresql://db.example/shop?user=me&pasword={}",
    "postgres//me:{}@db.example/shop",
    "mysql://me:{}@db.example/shop",
    "sqlite:///shop.db?key={}",
    "nats://me:{}@mq.example:4222",
    "nats://{}@mq.example:4222",
    "nats://mq.example:4222/?token={}",
    "me:{}@mq.example:4222",
    "{}@mq.example:4222",
    "https://me:{}@hooks.example/in",
    "https://hooks.example/in/{}",
    "https://hooks.example/in?key={}&more=1",
    "https://hooks.example/in#{}",
    "https//hooks.example/in?key={}",
    "Authorization: Bearer {}",
    "Bearer {}",
    "{}\n",
    "{}\x1b",
]


def shapes(value: str) -> Iterator[tuple[Any, int]]:
    """Yield wrong shapes too, each with how many steps above its place it stands."""
    for steps in range(4):
        yield value, steps
        yield [value], steps
        yield {value: None}, steps
        yield {"X-Key": value}, steps
        yield {"X-Key": [value]}, steps
        yield [[value]], steps
        yield [{"key": value, value: "key"}], steps


def planted(place: Place, value: Any) -> dict[str, Any]:
    """Return a configuration with the value at that place, and everything around it right."""
    document: dict[str, Any] = {"deployment_id": "shop", "storage": {"dsn": "sqlite:///shop.db"}}
    inner: Any = value
    for step in reversed(place[1:]):
        inner = [inner] if isinstance(step, int) else {step: inner}
    head = place[0]
    if isinstance(inner, dict) and isinstance(document.get(str(head)), dict):
        inner = document[str(head)] | inner
    if isinstance(inner, dict) and place[:1] == ("sinks",) and "webhook" in place and place[-1] != "url":
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            inner["crm"]["webhook"].setdefault("url", "https://hooks.example/in")
    return document | {str(head): inner}


def shown(path: Path, environ: Mapping[str, str]) -> str:
    """Return everything that is said about a file."""
    try:
        config = load_config(path, environ, imports=False)
    except RunnerError as error:
        return f"{error}\n{error!r}\n" + redaction.redacted("".join(traceback.format_exception(error)))
    said = [json.dumps(dump(config)), yaml.safe_dump(dump(config)), repr(config), str(config)]
    with contextlib.suppress(RunnerError):
        build(config)
    return "\n".join([*said, *_plan(config)])


def spelled(canary: str) -> set[str]:
    encoded = base64.b64encode(canary.encode()).decode().rstrip("=")
    return {canary, quote(canary, safe=""), json.dumps(canary)[1:-1], encoded}


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Nothing is known from before: what is not recognized as a secret is not hidden as one."""
    with nothing_known():
        yield


def test_the_places_are_those_of_the_schema() -> None:
    named = {".".join(str(step) for step in place) for place in PLACES}
    assert named >= {
        "storage.dsn",
        "strategies.0.nats.servers",
        "strategies.0.nats.password",
        "strategies.0.nats.token",
        "strategies.0.postgres.dsn",
        "sinks.crm.nats.servers",
        "sinks.crm.webhook.url",
        "sinks.crm.webhook.headers.X-Key",
        "sinks.crm.webhook.secret",
    }


def thinned(items: Iterable[Any], place: Place) -> Iterator[Any]:
    """Return one in seven, others for each place: together they are all, and all for each would take minutes."""
    return itertools.islice(items, PLACES.index(place) % _ONE_IN, None, _ONE_IN)


def is_host(place: Place, value: object) -> bool:
    """Return whether a value is the name of a server, which is shown."""
    return place[-1] in ("servers", "nats") and value in (CANARY, [CANARY])


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_a_secret_is_never_shown(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "runner.yaml"
    right = [(place, spelling.format(CANARY)) for spelling in SPELLINGS]
    misspelt = [((*place[:-1], f"{place[-1]}x"), value) for _, value in right]
    wrong = [(place[: max(1, len(place) - steps)], shape) for _, value in right for shape, steps in shapes(value)]
    for where, value in (*right, *thinned([*misspelt, *wrong], place)):
        if not is_host(where, value):
            forget_everything()
            path.write_text(yaml.safe_dump(planted(where, value)))
            said = shown(path, {})
            assert not [each for each in spelled(CANARY) if each in said], f"{value!r} at {where}: {said}"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(map(str, place)))
def test_nor_one_from_outside(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "runner.yaml"
    references = ("${SECRET}", "${file:secret}", "${NOTHING:-%s}", "${SECRET:?%s}", "x${file:secret}y")
    wheres = [place[: max(1, len(place) - steps)] for steps in range(3)]
    values = [spelling.format(CANARY) for spelling in SPELLINGS[:-2]]
    for where, value, reference in thinned(itertools.product(wheres, values, references), place):
        if not is_host(where, value):
            forget_everything()
            (tmp_path / "secret").write_text(value)
            path.write_text(yaml.safe_dump(planted(where, reference.replace("%s", value))))
            said = shown(path, {"SECRET": value})
            assert CANARY not in said, f"{reference} of {value!r} at {where}: {said}"


@pytest.mark.parametrize(
    "text",
    [
        "storage: {{dsn: !{} x}}",
        "storage: {{dsn: &{} x}}",
        "storage: {{dsn: *{}}}",
        "storage: {{dsn: @{}}}",
        "storage: {{dsn: %{}}}",
        "storage: {{dsn: `{}}}",
        'storage: {{dsn: "{}}}',
        'storage: {{dsn: "\\{}"}}',
        "storage: {{dsn: {}: {}}}",
        "storage: {{dsn: postgresql://me:{}@h/x: 1}}",
        "{}",
        "- {}",
        "? {}",
        "{}: 1",
        "!!{} x",
        "%{}\n---\nx: 1",
        "sinks: {{crm: {{webhook: {{url: https://h/?key={}}}}}}}",
        "sinks: {{crm: {{webhook: {{url: [https://h/?key={}]}}}}}}",
        "strategies: [nats://me:{}@h:4222]",
        "strategies: [{{nats: //me:{}@h:4222}}]",
        "subscriptions: [{{name: a, sink: https://h/?key={}}}]",
        "subscriptions: [{{name: https://h/?key={}, sink: a}}]",
        "subscriptions: {{https://h/?key={}: a}}",
    ],
)
def test_nor_one_that_yaml_stumbles_over(text: str, tmp_path: Path) -> None:
    path = tmp_path / "runner.yaml"
    path.write_text("deployment_id: shop\n" + text.format(CANARY, CANARY))
    assert CANARY not in shown(path, {})
