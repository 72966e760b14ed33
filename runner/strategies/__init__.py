"""Strategies: one file for each kind, with its options and its class; `config/kinds.py` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import NotifyStrategy, StrategyContext

if TYPE_CHECKING:
    from ..config.plugin import Plugin

__all__ = ["build_strategy"]


def build_strategy(plugin: Plugin, context: StrategyContext) -> NotifyStrategy:
    """
    Return the strategy of a configuration; nothing connects yet.

    Raises:
        ConfigError: it cannot be built.
    """
    methods = ("start", "notify", "stop")
    strategy: NotifyStrategy = plugin.build(context, what="strategy", methods=methods, subject=context.subject)
    return strategy
