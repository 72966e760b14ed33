"""Errors of a message on NATS, importable without nats-py."""

from __future__ import annotations

from ..errors import StrategyError

__all__ = ["BrokerError", "MessageRefused", "NoResponders"]


class BrokerError(StrategyError):
    """The message did not reach NATS, or its fate is unknown; it may be sent again."""


class MessageRefused(BrokerError):
    """NATS can never take the message, because of its subject, headers or size."""


class NoResponders(BrokerError):
    """No subscriber and no stream takes messages of the subject, so that no answer will come."""
