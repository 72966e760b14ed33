"""The section `subscriptions`: which events go to which sink."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from ..policies.filter import DIALECTS, FilterError, compile_filter
from ..policies.order import check_order_by
from ..subscription import DEAD_LETTER_SUFFIX, Subscription
from .breaker import Breaker, BreakerOverride, BreakerOverrideField
from .duration import PositiveDuration
from .errors import got, quoted
from .fields import Model, Name, Number, OneOrList, SinkName, context_of
from .kinds import SINKS
from .rate import RateField
from .retry import Retry, RetryOverride
from .source import unplaced

__all__ = ["SubscriptionEntry"]

_PATTERN = r"[^\x00-\x20\x7f]{1,2048}"


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
