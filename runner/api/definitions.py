"""The bodies that define a subscription or a schedule, held to the schemas that `/openapi.json` has of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..log.redaction import forget, gathered

if TYPE_CHECKING:
    from jsonschema_rs import Validator

__all__ = ["PLACE", "check", "schemas"]

PLACE = "#/components/schemas/"
"""Where the schemas are in the document."""

_FAULTS = 20


@functools.cache
def schemas() -> Mapping[str, Any]:
    """Return the schemas of the bodies and of their parts, by name."""
    from ..config.json_schema import written_schemas

    return written_schemas(PLACE)


def check(name: str, body: Mapping[str, Any], read: Callable[[], object]) -> None:
    """
    Refuse a body that the schema `name` refuses although `read` accepts it: a number in quotes, for instance.

    A file may have one, because a variable may stand for a number. A body that `read` refuses is left to the operation,
    whose messages are better, and which records the refusal in the audit log.

    Raises:
        ConfigError: one fault per line; of the body they repeat names only.
    """
    validator = _validator(name)
    if validator.is_valid(body):
        return
    with gathered() as learnt:
        try:
            read()
        except ConfigError:
            return
        finally:
            for secret in learnt:
                forget(secret)
    places = dict.fromkeys(".".join(map(str, each.instance_path)) or name for each in validator.iter_errors(body))
    raise ConfigError(*[f"{each}: not what {name} in /openapi.json allows" for each in list(places)[:_FAULTS]])


@functools.cache
def _validator(name: str) -> Validator:
    import jsonschema_rs  # only loaded for a definition

    return jsonschema_rs.validator_for({"$ref": f"{PLACE}{name}", "components": {"schemas": dict(schemas())}})
