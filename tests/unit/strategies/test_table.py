from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runner import strategies
from runner.config.dsn import Dsn
from runner.config.kinds import STRATEGIES
from runner.config.plugin import Plugin
from runner.errors import ConfigError, StrategyError
from runner.nats.connection import Broker, BrokerOptions
from runner.strategies import build_strategy
from runner.strategies.base import Connect, StrategyContext, Wake
from runner.strategies.nats import NatsOptions
from runner.strategies.polling import PollingOptions
from runner.strategies.postgres import PostgresOptions
from runner.strategies.sqlite import SqliteOptions
from runner.strategies.stack import compose


class Redis:
    """A third party's strategy."""

    def __init__(self, subject: str, *, url: str, hears: bool = False) -> None:
        if url == "broken":
            raise RuntimeError(url)
        if url == "odd":
            raise StrategyError("url: expected redis://…")
        self.subject = subject
        self.hears = hears

    async def start(self, wake: Wake) -> None: ...

    async def notify(self, event_id: str) -> None: ...

    async def stop(self) -> None: ...


asked: list[Dsn] = []


def connector(dsn: Dsn) -> Connect:
    asked.append(dsn)

    async def connect() -> Any:
        raise OSError("nobody there")

    return connect


POSTGRES = Dsn.parse("postgresql://store/db", Path("/"))
DIRECT = Dsn.parse("postgresql://direct/db", Path("/"))


@pytest.fixture
def context(tmp_path: Path) -> StrategyContext:
    asked.clear()
    return StrategyContext(
        subject="mesh.one.events.notify",
        dsn=Dsn(scheme="sqlite", path=tmp_path / "bus.db"),
        broker=lambda options: Broker(BrokerOptions.of(options)),
        connector=connector,
    )


def test_every_kind_of_the_configuration_can_be_built() -> None:
    parts = {"__init__", "base", "signaller", "stack"}
    files = {path.stem for path in Path(strategies.__file__).parent.glob("*.py")} - parts
    assert set(STRATEGIES) == files


def test_stack_keeps_the_order(context: StrategyContext) -> None:
    plugins = [
        Plugin("polling", PollingOptions()),
        Plugin("nats", NatsOptions.model_validate({"servers": ["nats://host"]})),
        Plugin("postgres", PostgresOptions.model_validate({"dsn": DIRECT})),
        Plugin("sqlite", SqliteOptions()),
    ]
    stack = compose(*(build_strategy(plugin, context) for plugin in plugins))
    assert [state.name for state in stack.states()] == ["polling", "nats", "postgres", "sqlite"]
    assert asked == [DIRECT]


def test_postgres_listens_where_the_store_is(context: StrategyContext) -> None:
    build_strategy(Plugin("postgres", PostgresOptions()), replace(context, dsn=POSTGRES))
    assert asked == [POSTGRES]


@pytest.mark.parametrize(("hears", "interval"), [(True, "every 30 s"), (False, "every 1 s")])
def test_polling_tightens_while_the_rest_of_the_stack_is_deaf(
    context: StrategyContext, hears: bool, interval: str
) -> None:
    polling = PollingOptions.model_validate({"deaf": timedelta(seconds=1)})
    redis = Plugin(f"{__name__}:Redis", {"url": "redis://host", "hears": hears})
    context = replace(context, deaf=lambda: stack.deaf)
    stack = compose(*(build_strategy(plugin, context) for plugin in (Plugin("polling", polling), redis)))
    assert [(state.name, state.hears) for state in stack.states()] == [("polling", None), ("redis", hears)]
    assert stack.states()[0].detail == interval


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "missing a required argument: 'url'"),
        ({"url": "x", "hers": True}, "unexpected keyword argument 'hers'"),
        ({"url": "x", "subject": "mine"}, "multiple values"),
        ({"url": "broken"}, "it raised RuntimeError"),
        ({"url": "odd"}, "url: expected redis://…"),
    ],
)
def test_third_party_that_cannot_be_built_is_a_fault_of_the_file(
    context: StrategyContext, options: Mapping[str, Any], text: str
) -> None:
    kind = f"{__name__}:Redis"
    with pytest.raises(ConfigError, match=text) as caught:
        build_strategy(Plugin(kind, options), context)
    assert kind in str(caught.value)
    assert "broken" not in str(caught.value)


@pytest.mark.parametrize("kind", ["os:getcwd", "builtins:dict"])
def test_third_party_that_is_no_strategy_is_a_fault_of_the_file(kind: str, context: StrategyContext) -> None:
    with pytest.raises(ConfigError, match=f"^{kind}: "):
        build_strategy(Plugin(kind, {}), context)


def test_polling_imports_no_driver() -> None:
    program = """
import sys
from runner.config.kinds import STRATEGIES
from runner.strategies.base import StrategyContext
STRATEGIES["polling"]().build(StrategyContext("s", None, None, None))
print(sorted({"nats", "asyncpg", "sqlite3", "aiohappyeyeballs"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
