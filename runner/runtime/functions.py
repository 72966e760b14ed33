"""The functions that a program subscribed: their subscriptions and their sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..sinks.base import Sink
from ..subscription import Subscription
from .plan import function_subscription

if TYPE_CHECKING:
    from ..config.written import Defaults

__all__ = ["Functions"]


class Functions:
    """
    The functions that a program subscribed.

    Attributes:
        subscriptions: theirs, by name.
        sinks: theirs, by the names of the sinks.
    """

    def __init__(self, make_sink: Callable[[Callable[..., Any]], Sink]) -> None:
        """Args: make_sink makes the sink of a function."""
        self._make_sink = make_sink
        self._options: dict[str, Mapping[str, Any]] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.sinks: dict[str, Sink] = {}

    def add(self, name: str, handler: Callable[..., Any], options: Mapping[str, Any], defaults: Defaults | None) -> str:
        """Add one, or replace it, and return the name of its sink; raise as `function_subscription()` does."""
        sink = f"function:{name}"
        self.subscriptions[name] = function_subscription(name, sink, options, defaults)
        self._options[name] = options
        self.sinks[sink] = self._make_sink(handler)
        return sink

    def remove(self, name: str) -> None:
        """Forget the subscription of one, if it is there."""
        self.subscriptions.pop(name, None)
        self._options.pop(name, None)

    def with_defaults(self, defaults: Defaults | None) -> Iterator[Subscription]:
        """Yield the subscriptions that are others with these defaults of the file."""
        for name, options in self._options.items():
            subscription = function_subscription(name, f"function:{name}", options, defaults)
            if subscription != self.subscriptions[name]:
                yield subscription
