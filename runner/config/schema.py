"""The schema of the configuration file: the whole, and those sections that have no module of their own."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)

from ..policies.limits import WorkerLimits
from ..policies.schedule import Schedule
from ..subscription import Subscription
from .api import Api
from .breaker import Breaker, BreakerField
from .destinations import Destinations, Sealing
from .dsn import Dsn
from .duration import Duration, PositiveDuration
from .errors import Fault, KeyPath, got
from .fields import Context, Model, Name, Number, OneOrList, check_subject, context_of
from .kinds import SinkField, StrategyField
from .plugin import Options
from .retry import Retry
from .schedules import ScheduleEntry
from .source import Source
from .storage import Storage
from .subscriptions import SubscriptionEntry
from .types import TypeEntry, TypePattern

__all__ = ["Config", "Log", "Retention", "Worker"]

_DEPLOYMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_LIMITS = WorkerLimits()


def _deployment_id(value: str) -> str:
    if not _DEPLOYMENT.fullmatch(value):
        raise ValueError(f"expected up to 63 letters, digits, '_' and '-', no '_' or '-' first, got {got(value)}")
    return value


class Worker(Model):
    """The limits of one process."""

    enabled: bool = Field(
        default=True, description="Dispatch and deliver events; false makes a process that only serves HTTP."
    )
    batch: Number = Field(default=_LIMITS.batch, ge=1, le=10_000, description="Events claimed at once.")
    concurrency: Number = Field(
        default=_LIMITS.concurrency, ge=1, le=10_000, description="Deliveries at once, over all subscriptions."
    )
    lease: Duration = Field(
        default=_LIMITS.lease,
        ge=timedelta(seconds=1),
        description="After this long without renewal others take over.",
    )
    max_hops: Number = Field(
        default=_LIMITS.max_hops,
        ge=1,
        le=1000,
        description="Events that may follow from each other, each published by a handler of the one before.",
    )
    shutdown_grace: Duration = Field(
        default=timedelta(seconds=25), description="How long a stop waits for deliveries that are running."
    )


class Retention(Model):
    """How long actions are kept, and events once all of their deliveries have ended; null keeps them for ever."""

    delivered: PositiveDuration | None = Field(
        default=timedelta(days=7), description="With deliveries that succeeded, or none at all."
    )
    dead: PositiveDuration | None = Field(
        default=timedelta(days=90), description="With deliveries that are dead or cancelled."
    )
    audit: PositiveDuration | None = Field(
        default=timedelta(days=90), description="Actions in the audit log (`runner audit`)."
    )


class Log(Model):
    """The log on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least severe level.")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="`auto` is console on a terminal, else json."
    )

    def apply(self, *, own: bool = False, patience: float | None = None) -> None:
        """
        Log as this section says from now on; see `log.setup`.

        Args:
            own: configure this package's log only, and leave the rest to the program.
            patience: seconds that messages for people wait for a reader at most; None for as long as it takes.
        """
        from ..log.setup import configure, configure_own

        if own:
            configure_own(self.level, self.format)
        else:
            configure(self.level, self.format, patience=patience)

    def change(self) -> None:
        """Apply this section in the way of the earlier `apply()`; without one, do nothing."""
        from ..log.setup import change

        change(self.level, self.format)


class Config(Model):
    """The whole file."""

    include: Annotated[tuple[str, ...], OneOrList()] = Field(
        default=(),
        description="Files that belong to this one, by paths relative to it or patterns such as `parts/*.yaml`.",
    )
    deployment_id: Annotated[str, AfterValidator(_deployment_id)] = Field(
        description="Names the bus: owns its tables, and keeps its signals apart from others'."
    )
    subject: Annotated[
        str, AfterValidator(lambda subject: check_subject(subject, frozenset({"deployment_id"}), ("_INBOX", "$")))
    ] = Field(
        default="mesh.{deployment_id}.events.notify",
        description="Subject of the signals; the PostgreSQL channel derives from it too.",
    )
    storage: Storage = Field(description="Where events and deliveries are kept.")
    strategies: tuple[StrategyField, ...] = Field(
        default=(),
        min_length=1,
        description="What wakes workers, all at once. Left out: `polling: 30s`, and `postgres` or `sqlite: 25ms`"
        " after the DSN.",
    )
    sinks: Mapping[Name, SinkField] = Field(default_factory=dict, description="Where deliveries go, by name.")
    subscriptions: tuple[SubscriptionEntry, ...] = Field(
        default=(), description="Who wants which events, in which sink."
    )
    types: Mapping[TypePattern, TypeEntry] = Field(
        default_factory=dict, description="What is known of types of events; `*` stands for any characters."
    )
    schedules: tuple[ScheduleEntry, ...] = Field(default=(), description="Events at regular times.")
    worker: Worker = Field(default=Worker(), description="How much one process takes on.")
    retry: Retry = Field(default=Retry(), description="Defaults for every subscription.")
    breaker: BreakerField = Field(
        default=Breaker(), description="When a subscription that only fails is left alone; `off` for never."
    )
    retention: Retention = Field(
        default=Retention(),
        description="How long events are kept once every delivery of theirs has ended, and actions by hand.",
    )
    api: Api | None = Field(
        default=None, description="The HTTP interface; left out: none. `{}` serves it with the defaults."
    )
    sealing: Sealing | None = Field(
        default=None,
        description="Keys for the secrets of destinations that subscriptions bring with them; null: such are refused.",
    )
    destinations: Destinations = Field(
        default=Destinations(), description="Where subscriptions may lead that bring a destination of their own."
    )
    tracing: Literal["otel"] | None = Field(
        default=None,
        description="`otel`: spans for publish, dispatch and delivery by OpenTelemetry (extra `[otel]`). null: none.",
    )
    lifecycle: bool = Field(
        default=False, description="Publish what an operator wants to be told of, as events of `/runner/DEPLOYMENT`."
    )
    log: Log = Field(default=Log(), description="What is logged, on stderr.")

    _file: str = PrivateAttr("")
    _source: Source = PrivateAttr(default_factory=Source)
    _settings: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _default_strategies(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict) or data.get("strategies") is not None:
            return data
        return data | {"strategies": default_strategies(context_of(info))}

    def attach(self, file: str, source: Source, settings: tuple[str, ...] = ()) -> Config:
        """Keep the places of the values for `locate()`, and the values of `--set`; return the configuration."""
        self._file, self._source, self._settings = file, source, settings
        return self

    @property
    def file(self) -> str:
        """The path of the file as the user gave it; empty for a configuration made in a program."""
        return self._file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that were read for it, the configuration file first, then those it names for values and schemas."""
        return tuple(self._source.files)

    @property
    def watched(self) -> tuple[Path, ...]:
        """The files, those of certificates, and the directories that patterns of `include` look into."""
        return (*self.files, *sorted(self._source.certificates | self._source.directories))

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any of the files or settings; empty without a file."""
        if not self._source.files:
            return ""
        read = "\0".join((*self._source.files.values(), *self._settings))
        return hashlib.sha256(read.encode(errors="replace")).hexdigest()[:12]

    @property
    def settings(self) -> tuple[str, ...]:
        """The values that `--set` gave on the command line, with which the file is read again."""
        return self._settings

    def locate(self, path: KeyPath, message: str) -> str:
        """Return a fault found after loading as one line that begins with its place in the file."""
        if not self._file:
            return Fault(message, path).line("")
        place = self._source.place(path)
        return Fault(message, place.path, place.position, place.file).line(self._file)

    @property
    def signal_subject(self) -> str:
        """The subject with the deployment filled in."""
        return self.subject.replace("{deployment_id}", self.deployment_id)

    def to_subscriptions(self) -> tuple[Subscription, ...]:
        """Return the subscriptions, each with its policies complete."""
        return tuple(entry.to_subscription(self.retry, self.breaker) for entry in self.subscriptions)

    def to_schedules(self) -> tuple[Schedule, ...]:
        """Return the schedules."""
        return tuple(entry.to_schedule() for entry in self.schedules)

    def dsns(self) -> Iterator[tuple[KeyPath, Dsn]]:
        """Yield every DSN with its place: the store's, and those that strategies listen on."""
        yield ("storage", "dsn"), self.storage.dsn
        for index, plugin in enumerate(self.strategies):
            for key, value in plugin.options if isinstance(plugin.options, Options) else ():
                if isinstance(value, Dsn):
                    yield ("strategies", index, plugin.kind, key), value


def default_strategies(context: Context) -> list[str]:
    """Return the default strategies of a DSN, in the form of the file."""
    match context.dsn:
        case Dsn(scheme="sqlite"):
            return ["polling", "sqlite"]
        case Dsn() if not context.pgbouncer:
            return ["polling", "postgres"]
        case _:
            return ["polling"]
