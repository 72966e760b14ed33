"""Sinks: one file for each kind, with its options and its class; `config/kinds.py` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import Sink, SinkContext

if TYPE_CHECKING:
    from ..config.plugin import Plugin

__all__ = ["build_sink"]


def build_sink(plugin: Plugin, context: SinkContext) -> Sink:
    """
    Return the sink of a configuration; nothing connects yet.

    Raises:
        ConfigError: a third-party sink cannot be built.
        SinkError: a built-in one cannot.
    """
    sink: Sink = plugin.build(context, what="sink", methods=("start", "deliver", "stop"))
    return sink
