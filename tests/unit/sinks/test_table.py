from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from runner import sinks
from runner.config.kinds import SINKS
from runner.config.plugin import Plugin
from runner.delivery import ACCEPTED, Delivery, Outcome
from runner.errors import ConfigError, SinkError
from runner.nats.connection import Broker, BrokerOptions
from runner.nats.options import NatsConnection
from runner.sinks import build_sink
from runner.sinks.base import Sink, SinkContext
from runner.sinks.nats import NatsSink
from runner.sinks.python import PythonSink
from runner.sinks.stdout import StdoutSink
from runner.sinks.webhook import WebhookSink

ASKED: list[NatsConnection] = []


def broker(options: NatsConnection) -> Broker:
    ASKED.append(options)
    return Broker(BrokerOptions(servers=("nats://127.0.0.1:1",)))


CONTEXT = SinkContext("prod", broker, 256)


def built(kind: str, options: Mapping[str, Any]) -> Sink:
    checked = SINKS[kind].model_validate(options) if kind in SINKS else options
    return build_sink(Plugin(kind, checked), CONTEXT)


class Kafka:
    """A third party's sink."""

    def __init__(self, topic: str, fault: BaseException | None = None) -> None:
        self.topic = topic
        if fault is not None:
            raise fault

    async def start(self) -> None: ...

    async def deliver(self, delivery: Delivery) -> Outcome:
        return ACCEPTED

    async def stop(self) -> None: ...


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("stdout", {"format": "json"}, StdoutSink),
        ("python", {"target": "builtins:print", "permanent": ("OSError",)}, PythonSink),
        (
            "webhook",
            {
                "url": "https://crm.example/e",
                "timeout": timedelta(seconds=1),
                "headers": {"X-Key": "k"},
                "permanent": (404,),
                "deferred": timedelta(minutes=1),
                "mode": "structured",
                "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            },
            WebhookSink,
        ),
        ("nats", {"subject": "orders.{type}", "jetstream": True}, NatsSink),
        (f"{__name__}:Kafka", {"topic": "orders"}, Kafka),
    ],
)
def test_every_kind_is_built_from_its_options(kind: str, options: dict[str, Any], expected: type) -> None:
    assert type(built(kind, options)) is expected


def test_the_broker_is_asked_for_with_the_options_of_the_sink() -> None:
    options = SINKS["nats"].model_validate({"subject": "orders", "servers": ["nats://127.0.0.1:1"]})
    build_sink(Plugin("nats", options), CONTEXT)
    assert ASKED[-1] is options


@pytest.mark.parametrize("options", [{}, {"topic": "a", "colour": "b"}])
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Kafka: "):
        built(f"{__name__}:Kafka", options)


@pytest.mark.parametrize("fault", [RuntimeError("tops3cret"), SystemExit("tops3cret"), ValueError("tops3cret")])
def test_whatever_a_constructor_raises_is_named_without_its_text(fault: BaseException) -> None:
    with pytest.raises(ConfigError, match=f"Kafka: cannot be built, it raised {type(fault).__name__}") as caught:
        built(f"{__name__}:Kafka", {"topic": "a", "fault": fault})
    assert "tops3cret" not in str(caught.value)


def test_a_sink_error_is_written_for_people_and_shown() -> None:
    with pytest.raises(ConfigError, match="Kafka: topic: expected a name"):
        built(f"{__name__}:Kafka", {"topic": "", "fault": SinkError("topic: expected a name")})


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(ConfigError, match="os:getcwd: expected a sink with start, deliver and stop, got 'str'"):
        built("os:getcwd", {})


def test_a_third_party_that_does_not_import_is_refused() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        built("nowhere:Kafka", {})


@pytest.mark.parametrize(
    ("kind", "value"),
    [("stdout", "text"), ("python", "builtins:print"), ("webhook", "https://h"), ("nats", "orders.{type}")],
)
def test_reading_the_options_of_a_kind_loads_no_client(kind: str, value: str) -> None:
    program = (
        "import sys\n"
        "from runner.config.kinds import SINKS\n"
        f"SINKS[{kind!r}].model_validate({{SINKS[{kind!r}].main: {value!r}}})\n"
        "print(sorted({'aiohappyeyeballs', 'nats', 'sqlalchemy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_kind_is_loaded_when_it_is_asked_for() -> None:
    program = (
        "import sys\n"
        "from runner.config.kinds import SINKS, STRATEGIES\n"
        "assert 'webhook' in SINKS and 'nats' in STRATEGIES and len(SINKS) == len(list(SINKS))\n"
        "SINKS['stdout'], STRATEGIES['polling']\n"
        "print(sorted(name for name in sys.modules if name.startswith(('runner.sinks.', 'runner.strategies.'))))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {"runner.sinks.base", "runner.sinks.stdout", "runner.sinks.threads"}
    assert set(ast.literal_eval(found.stdout)) == loaded | {"runner.strategies.base", "runner.strategies.polling"}


def test_the_table_is_complete() -> None:
    files = {path.stem for path in Path(sinks.__file__).parent.glob("*.py")} - {"__init__", "base", "threads"}
    assert set(SINKS) == files
