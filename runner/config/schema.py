"""The schema of the configuration file: every key, its meaning and its default."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ..policies.filter import DIALECTS, FilterError, compile_filter
from ..policies.limits import WorkerLimits
from ..policies.order import check_order_by
from ..policies.schedule import Schedule
from ..subscription import DEAD_LETTER_SUFFIX, Subscription
from .api import Api
from .breaker import Breaker, BreakerField, BreakerOverride, BreakerOverrideField
from .destinations import Destinations, Sealing
from .dsn import Dsn
from .duration import Duration, PositiveDuration
from .errors import Fault, KeyPath, got, quoted
from .fields import Context, Model, Name, Number, OneOrList, SinkName, check_subject, context_of
from .kinds import SINKS, SinkField, StrategyField
from .plugin import Options
from .rate import RateField
from .retry import Retry, RetryOverride
from .schedules import ScheduleEntry
from .source import Source, unplaced
from .storage import Storage
from .types import TypeEntry, TypePattern

__all__ = [
    "Api",
    "Config",
    "Log",
    "Retention",
    "Retry",
    "RetryOverride",
    "Storage",
    "SubscriptionEntry",
    "Worker",
]

_DEPLOYMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_PATTERN = r"[^\x00-\x20\x7f]{1,2048}"


def _deployment_id(value: str) -> str:
    if not _DEPLOYMENT.fullmatch(value):
        raise ValueError(f"expected up to 63 letters, digits, '_' and '-', no '_' or '-' first, got {got(value)}")
    return value


def _pattern(value: str) -> str:
    if not re.fullmatch(_PATTERN, value):
        raise ValueError(f"expected text without spaces, in which '*' stands for anything, got {got(value)}")
    return value


def _type_pattern(value: str) -> str:
    if re.search(r"(?:^|\.)[>#]\Z", value):
        everything = f"{value[:-1]}*"
        raise ValueError(
            f"{quoted(value[-1])} stands for itself here; for everything that starts so write {quoted(everything)}, or"
            f" filter: {{exact: {{type: {quoted(value)}}}}} for a type of that name"
        )
    return _pattern(value)


def _filter(value: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        compile_filter(value)
    except FilterError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return value


def _order_by(value: str) -> str:
    try:
        return check_order_by(value)
    except ValueError as error:
        raise ValueError(f"{error}, got {got(value)}") from None


_AS_PATTERN = WithJsonSchema({"type": "string", "pattern": f"^{_PATTERN}$"})
_AS_ATTRIBUTE = WithJsonSchema({"type": "string", "pattern": "^[a-z0-9]{1,100}$"})
_SOME = Field(min_length=1)
_SUBSCRIPTION = Subscription(name="defaults", sink="defaults")
_LIMITS = WorkerLimits()


class SubscriptionEntry(Model):
    """A subscription: which events go to which sink."""

    name: Name = Field(description="Unique name; the history of deliveries hangs on it.")
    types: (
        Annotated[tuple[Annotated[str, AfterValidator(_type_pattern), _AS_PATTERN], ...], _SOME, OneOrList()] | None
    ) = Field(default=None, description="Event types; `*` stands for any characters. Left out: all.")
    source: Annotated[str, AfterValidator(_pattern), _AS_PATTERN] | None = Field(
        default=None, description="Event source; `*` stands for any characters. Left out: all."
    )
    filter: Annotated[dict[str, Any], BeforeValidator(unplaced), AfterValidator(_filter)] | None = Field(
        default=None, description=f"CloudEvents filter: {', '.join(f'`{name}`' for name in DIALECTS)}."
    )
    sink: SinkName = Field(description="Name of the sink.")
    concurrency: Number = Field(
        default=_SUBSCRIPTION.concurrency, ge=1, le=10_000, description="Deliveries at once, per process."
    )
    timeout: PositiveDuration = Field(default=_SUBSCRIPTION.timeout, description="Longest time one delivery may take.")
    retry: RetryOverride = Field(default=RetryOverride(), description="Differences from the top-level `retry`.")
    batch: Number | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Deliveries the sink is given at once; null: one by one. For `webhook` and `python` sinks.",
    )
    breaker: BreakerOverrideField = Field(
        default=BreakerOverride(), description="Differences from the top-level `breaker`; `off` never stops trying."
    )
    rate: RateField | None = Field(
        default=None, description="At most so many deliveries, over all processes: `20/s`, `100/m`, `1000/h`."
    )
    dead_letter: SinkName | None = Field(default=None, description="Sink that is given what is dead.")
    order_by: Annotated[str, AfterValidator(_order_by), _AS_ATTRIBUTE] | None = Field(
        default=None,
        description="Attribute (`subject`, `source`, an extension …) whose equal values are delivered in order.",
    )

    @field_validator("name")
    @classmethod
    def _unique(cls, name: str, info: ValidationInfo) -> str:
        if name.endswith(DEAD_LETTER_SUFFIX):
            raise ValueError(f"names that end in {quoted(DEAD_LETTER_SUFFIX)} are taken, for dead letters")
        context_of(info).claim("subscription", name)
        return name

    @field_validator("batch")
    @classmethod
    def _batched(cls, batch: int | None, info: ValidationInfo) -> int | None:
        context, sink, retry = context_of(info), info.data.get("sink"), info.data.get("retry")
        kind = None if context.sinks is None else context.sinks.get(sink or "")
        if batch is None or sink is None or kind is None:
            return batch
        if kind in SINKS and not SINKS[kind].batches:
            able = " or ".join(name for name, options in SINKS.items() if options.batches)
            raise ValueError(
                f"sink {sink!r} ({kind}) takes one event at a time; leave batch out, or name a {able} sink"
            )
        if kind in SINKS and SINKS[kind].uniform and sink in context.singly:
            raise ValueError(
                f"sink {sink!r} would call its function with lists here, and with single events for another"
                " subscription; give each a sink of its own"
            )
        own = None if retry is None else retry.max_attempts or (retry.schedule and len(retry.schedule) + 1)
        if (own or context.attempts) == 1:
            raise ValueError("a failed delivery of a batch is tried again alone; give retry.max_attempts of 2 or more")
        return batch

    def to_subscription(self, retry: Retry, breaker: Breaker | None) -> Subscription:
        """Return the subscription, its policies completed from these defaults."""
        return Subscription(
            name=self.name,
            sink=self.sink,
            types=self.types or (),
            source=self.source,
            filter=self.filter,
            concurrency=self.concurrency,
            batch=self.batch,
            timeout=self.timeout,
            retry=self.retry.over(retry),
            breaker=None if self.breaker is None else self.breaker.over(breaker),
            dead_letter=self.dead_letter,
            rate=self.rate,
            order_by=self.order_by,
        )


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
