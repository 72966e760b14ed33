from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from runner.broker import Broker, BrokerOptions
from runner.delivery import ACCEPTED, Delivery, Outcome
from runner.errors import SinkError
from runner.sinks import SINKS, SinkContext, build_sink
from runner.sinks.nats import NatsSink
from runner.sinks.python import PythonSink
from runner.sinks.stdout import StdoutSink
from runner.sinks.webhook import WebhookSink

ASKED: list[Mapping[str, Any]] = []


def broker(options: Mapping[str, Any]) -> Broker:
    ASKED.append(options)
    return Broker(BrokerOptions(servers=("nats://127.0.0.1:1",)))


CONTEXT = SinkContext("prod", broker)


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
                "headers": {},
                "permanent": (404,),
                "deferred": timedelta(minutes=1),
                "mode": "structured",
                "secret": None,
            },
            WebhookSink,
        ),
        ("nats", {"subject": "orders.{type}", "jetstream": False}, NatsSink),
        (f"{__name__}:Kafka", {"topic": "orders"}, Kafka),
    ],
)
def test_every_kind_is_built_from_plain_options(kind: str, options: dict[str, Any], expected: type) -> None:
    assert type(build_sink(kind, options, CONTEXT)) is expected


def test_the_broker_is_asked_for_with_the_options_of_the_sink() -> None:
    options = {"subject": "orders", "servers": ["nats://127.0.0.1:1"]}
    build_sink("nats", options, CONTEXT)
    assert ASKED[-1] == options


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SinkError, match="'kafka', expected one of: nats, python, stdout, webhook, or 'module:factory'"):
        build_sink("kafka", {}, CONTEXT)


@pytest.mark.parametrize("options", [{}, {"topic": "a", "colour": "b"}])
def test_options_that_do_not_fit_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SinkError, match="Kafka: "):
        build_sink(f"{__name__}:Kafka", options, CONTEXT)


@pytest.mark.parametrize("fault", [RuntimeError("tops3cret"), SystemExit("tops3cret"), ValueError("tops3cret")])
def test_whatever_a_constructor_raises_is_named_without_its_text(fault: BaseException) -> None:
    with pytest.raises(SinkError, match=f"Kafka: cannot be built, it raised {type(fault).__name__}") as caught:
        build_sink(f"{__name__}:Kafka", {"topic": "a", "fault": fault}, CONTEXT)
    assert "tops3cret" not in str(caught.value)


def test_a_sink_error_is_written_for_people_and_shown() -> None:
    with pytest.raises(SinkError, match="Kafka: topic: expected a name"):
        build_sink(f"{__name__}:Kafka", {"topic": "", "fault": SinkError("topic: expected a name")}, CONTEXT)


def test_what_is_no_sink_is_refused() -> None:
    with pytest.raises(SinkError, match="os:getcwd: expected a sink with start, deliver and stop, got 'str'"):
        build_sink("os:getcwd", {}, CONTEXT)


def test_a_third_party_that_does_not_import_is_refused() -> None:
    with pytest.raises(SinkError, match="nowhere"):
        build_sink("nowhere:Kafka", {}, CONTEXT)


def test_a_sink_loads_only_what_it_needs() -> None:
    program = (
        "import sys, runner.sinks as s\n"
        "s.build_sink('stdout', {'format': 'text'}, s.SinkContext('d', None))\n"
        "print(sorted({'aiohappyeyeballs', 'nats', 'sqlalchemy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_table_is_complete() -> None:
    assert set(SINKS) == {"nats", "python", "stdout", "webhook"}
