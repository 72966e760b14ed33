"""Retries in the file: the section `retry`, and the override of a subscription."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ..policies.retry import RetryPolicy
from .duration import Duration, PositiveDuration
from .fields import Model, Number, check_longest, merged, optional

__all__ = ["Retry", "RetryOverride"]

_DEFAULTS = RetryPolicy()


class Retry(Model):
    """When a failed delivery is retried, and when it is dead."""

    max_attempts: Number = Field(
        default=_DEFAULTS.max_attempts, ge=1, le=1000, description="Attempts before a delivery is dead."
    )
    delay: Duration = Field(default=_DEFAULTS.delay, description="Wait after the first failure; doubles.")
    max_delay: Duration = Field(
        default=_DEFAULTS.max_delay, description="Longest wait; left out, no shorter than `delay`."
    )
    jitter: float = Field(
        default=_DEFAULTS.jitter, ge=0, le=1, description="Share of the wait that is random, from 0 to 1."
    )
    schedule: Annotated[tuple[Duration, ...], Field(min_length=1, max_length=999)] | None = Field(
        default=None,
        description="The waits one by one, instead of `delay` and `max_delay`; the attempts end with the last.",
    )
    max_age: PositiveDuration | None = Field(
        default=_DEFAULTS.max_age,
        description="No attempt starts later than this after the first one; null: no limit.",
    )

    @model_validator(mode="after")
    def _one_kind_of_wait(self) -> Self:
        doubling = sorted(self.model_fields_set & {"delay", "max_delay"})
        if self.schedule is not None and doubling:
            raise ValueError(f"schedule: it lists every wait; leave out {' and '.join(doubling)}, or the schedule")
        check_longest(self, "delay", "max_delay")
        return self


class RetryOverride(optional(Retry)):  # type: ignore[misc]  # its fields are those of `Retry`
    """The same for one subscription; missing fields come from the defaults."""

    def over(self, defaults: Retry) -> RetryPolicy:
        """Return the policy, each field from here or else from `defaults`."""
        own = {name: value for name, value in self if value is not None}
        fields = merged(defaults, own, "delay", "max_delay")
        if "delay" in own or "max_delay" in own:
            fields["schedule"] = None  # doubling waits replace the listed ones of the defaults
        waits = fields["schedule"] = fields["schedule"] or ()
        limited = "max_attempts" in own or ("schedule" not in own and "max_attempts" in defaults.model_fields_set)
        if waits and not limited:
            fields["max_attempts"] = len(waits) + 1  # the default belongs to doubling waits, not to a list
        return RetryPolicy(**fields)
