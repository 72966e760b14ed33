"""The settings of a runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..policies.breaker import BreakerPolicy
from ..policies.filter import compile_filter
from ..policies.limits import WorkerLimits
from ..policies.retry import RetryPolicy
from ..policies.schedule import Schedule
from ..storage.contract.archive import Retention
from ..subscription import Subscription

if TYPE_CHECKING:
    from ..bus.type_schemas import TypeSchemas
    from ..config.api import Api
    from ..config.written import Defaults

__all__ = ["Plan", "function_subscription"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    The settings of a runner.

    Attributes:
        summary: one line that says what was built.
        subscriptions: those of the file.
        schedules: those of the file.
        works: whether the process dispatches and delivers events, and publishes those of schedules.
        channel: NOTIFY channel for SQL publishers; None without a `postgres` strategy.
        start_timeout: how long `start()` waits for a store that is away.
        migrate: whether `start()` brings the tables up to date.
        shutdown_grace: how long `stop()` waits for running deliveries.
        retention: how long events are kept.
        schemas: what the data of events has to fit.
        api: the HTTP interface that `start()` serves; None for none.
        lifecycle: whether lifecycle events are published.
        defaults: the retries and breaker of functions, where their options leave them out; None: those of no file.
    """

    deployment_id: str
    summary: str
    subscriptions: Sequence[Subscription]
    limits: WorkerLimits
    schedules: Sequence[Schedule] = ()
    works: bool = True
    channel: str | None = None
    start_timeout: timedelta = timedelta(seconds=30)
    migrate: bool = True
    shutdown_grace: timedelta = timedelta(seconds=25)
    retention: Retention = field(default_factory=Retention)
    schemas: TypeSchemas | None = None
    api: Api | None = None
    lifecycle: bool = False
    defaults: Defaults | None = None


def function_subscription(
    name: str, sink: str, options: Mapping[str, Any], defaults: Defaults | None = None
) -> Subscription:
    """
    Return the subscription of a function; its options are written as in the file, or are values of `Subscription`.

    Raises:
        FilterError: the filter does not compile.
        ValueError: options that the schema of the file refuses, a fault in each line.
    """
    from ..config.written import read_options  # pydantic, not needed to publish

    if "sink" in options:
        raise ValueError(f"subscribe({name!r}): sink: the function is the sink; leave it out")
    if options.get("filter"):
        compile_filter(options["filter"])
    policies = (RetryPolicy, BreakerPolicy, datetime)
    made: dict[str, Any] = {key: value for key, value in options.items() if isinstance(value, policies)}
    written = {key: value for key, value in options.items() if key not in made}
    if not written.get("types", "*"):
        del written["types"]  # none are all, as in `Subscription`
    try:
        return replace(read_options(name, sink, written, defaults), **made)
    except ConfigError as error:
        raise ValueError(f"subscribe({name!r}): {error}") from None
