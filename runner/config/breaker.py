"""The circuit breaker in the file: a section, `off`, or null."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..breaker import BreakerPolicy
from .duration import PositiveDuration
from .errors import got
from .fields import Model, Number

__all__ = ["Breaker", "BreakerField", "BreakerOverride", "BreakerOverrideField"]


class Breaker(Model):
    """When nothing more is tried for a subscription that only fails, and for how long."""

    failures: Number = Field(default=20, ge=1, le=10_000, description="Failures in a row before nothing is tried.")
    pause: PositiveDuration = Field(
        default=timedelta(seconds=10), description="For how long; doubles while the next try fails, too."
    )
    max_pause: PositiveDuration = Field(default=timedelta(minutes=5), description="Longest pause.")


class BreakerOverride(Model):
    """The same for one subscription; what is left out comes from the defaults."""

    failures: Number | None = Field(
        default=None, ge=1, le=10_000, description="Failures in a row before nothing is tried."
    )
    pause: PositiveDuration | None = Field(
        default=None, description="For how long; doubles while the next try fails, too."
    )
    max_pause: PositiveDuration | None = Field(default=None, description="Longest pause.")

    def over(self, defaults: Breaker | None) -> BreakerPolicy | None:
        """Return the policy, each field from here or else from `defaults`; None if both are off or empty."""
        own = {name: value for name in Breaker.model_fields if (value := getattr(self, name)) is not None}
        if defaults is None and not own:
            return None
        return BreakerPolicy(**(dict(defaults or Breaker()) | own))


def _off(value: object) -> object:
    if value is True:
        raise ValueError(f"expected off, or a mapping such as {{failures: 20}}, got {got(value)}")
    return None if value is False or value == "off" else value


def _or_off(schema: dict[str, Any]) -> None:
    schema["anyOf"].append({"const": "off"})


BreakerField = Annotated[Breaker | None, BeforeValidator(_off), Field(json_schema_extra=_or_off)]
"""The defaults of every subscription, or None."""

BreakerOverrideField = Annotated[BreakerOverride | None, BeforeValidator(_off), Field(json_schema_extra=_or_off)]
"""What one subscription has of its own, or None."""
