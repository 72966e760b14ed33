"""The circuit breaker in the file: a section, `off`, or null."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from ..policies.breaker import BreakerPolicy
from .duration import PositiveDuration
from .errors import got
from .fields import Model, Number, check_longest, merged, optional

__all__ = ["Breaker", "BreakerField", "BreakerOverride", "BreakerOverrideField"]


_DEFAULTS = BreakerPolicy()


class Breaker(Model):
    """When deliveries of a failing subscription are suspended, and for how long."""

    failures: Number = Field(
        default=_DEFAULTS.failures, ge=1, le=10_000, description="Failures in a row before nothing is tried."
    )
    pause: PositiveDuration = Field(
        default=_DEFAULTS.pause, description="For how long; doubles while the next try fails, too."
    )
    max_pause: PositiveDuration = Field(
        default=_DEFAULTS.max_pause, description="Longest pause; left out, no shorter than `pause`."
    )

    @model_validator(mode="after")
    def _longest(self) -> Self:
        check_longest(self, "pause", "max_pause")
        return self

    def complete(self) -> Self:
        """Return the section with every key, as it acts."""
        return self.model_construct(**merged(self, {}, "pause", "max_pause"))


class BreakerOverride(optional(Breaker)):  # type: ignore[misc]  # its fields are those of `Breaker`
    """The same for one subscription; missing fields come from the defaults."""

    def over(self, defaults: Breaker | None) -> BreakerPolicy | None:
        """Return the policy, each field from here or else from `defaults`; None if both are off or empty."""
        own = {name: value for name, value in self if value is not None}
        if defaults is None and not own:
            return None
        return BreakerPolicy(**merged(defaults or Breaker(), own, "pause", "max_pause"))


def _off(value: object) -> object:
    if value is True:
        raise ValueError(f"expected off, or a mapping such as {{failures: 20}}, got {got(value)}")
    return None if value is False or value == "off" else value


def _or_off(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"enum": ["off", False]})


BreakerField = Annotated[Breaker | None, BeforeValidator(_off), Field(json_schema_extra=_or_off)]
"""The defaults of every subscription, or None."""

BreakerOverrideField = Annotated[BreakerOverride | None, BeforeValidator(_off), Field(json_schema_extra=_or_off)]
"""The keys that one subscription overrides, or None."""
