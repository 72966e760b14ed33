"""The built-in kinds of strategy and sink: one line each, its options and its class together in a file of its own."""

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
