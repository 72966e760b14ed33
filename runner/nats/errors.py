"""Errors of a message on NATS, apart from the connection, so that they can be caught without nats-py."""

from __future__ import annotations

from ..errors import StrategyError

__all__ = ["BrokerError", "MessageRefused"]


class BrokerError(StrategyError):
    """The message did not reach NATS, or nobody knows whether it did; it may be sent again."""


class MessageRefused(BrokerError):
    """The message can never be sent: its subject, its headers or its size are not what NATS takes."""
