"""The built-in kinds of strategies and sinks, one line each: a reference to the options in the file of the kind."""

from __future__ import annotations

from typing import Annotated

from .plugin import Kinds, Plugin, PluginField

__all__ = ["SINKS", "STRATEGIES", "SinkField", "StrategyField"]

STRATEGIES = Kinds(
    {
        "nats": "runner.strategies.nats:NatsOptions",
        "polling": "runner.strategies.polling:PollingOptions",
        "postgres": "runner.strategies.postgres:PostgresOptions",
        "sqlite": "runner.strategies.sqlite:SqliteOptions",
    }
)
SINKS = Kinds(
    {
        "nats": "runner.sinks.nats:NatsSinkOptions",
        "python": "runner.sinks.python:PythonOptions",
        "stdout": "runner.sinks.stdout:StdoutOptions",
        "webhook": "runner.sinks.webhook:WebhookOptions",
    }
)

StrategyField = Annotated[Plugin, PluginField(STRATEGIES)]
SinkField = Annotated[Plugin, PluginField(SINKS)]
