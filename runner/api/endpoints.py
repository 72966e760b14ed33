"""Endpoints: a route with its parameters and answers, said once for the handler and for `/openapi.json`."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from starlette.responses import Response
from starlette.routing import Route

from ..config.duration import DURATION, parse_duration
from ..config.rate import RATE
from ..policies.rate import Rate
from .bodies import Bodies, check_encoding
from .parameters import EARLIEST, LATEST, bad_parameter, boolean, parameters, rfc3339
from .parameters import moment as moment_or_ago
from .problems import Problem

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.requests import Request

    from ..operations import Operations
    from .access import Caller, Need
    from .surface import Surface

__all__ = [
    "Call",
    "Endpoint",
    "Parameter",
    "choice",
    "cursor",
    "cursor_of",
    "duration",
    "flag",
    "limit",
    "moment",
    "page",
    "past",
    "rate",
    "text",
]

_PLAIN = r"^[^\u0000-\u001f\u007f-\u009f]+$"

MOST = 1000
"""The largest page of a list."""


class Parameter(NamedTuple):
    """A parameter of a query: how it is read, its JSON Schema, and what it means."""

    read: Callable[[str, str], Any]
    schema: Mapping[str, Any]
    description: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an endpoint, admitted and read."""

    surface: Surface
    caller: Caller
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]
    content: bytes  # the body as it came
    headers: Headers

    @property
    def operations(self) -> Operations:
        """The operations as those of the caller."""
        return self.surface.operations.by(f"api:{self.caller.name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """
    One method of one path.

    Attributes:
        answer: name of the schema of its answer.
        query: parameters. Where a change has no body of its own, they may be members of one in JSON as well.
        body: JSON Schemas of the members of its body, all of which may be left out; none for any object.
        errors: further statuses of its answers.
        definition: name of the schema of its whole body, in place of `body`.
        conditional: whether it heeds `If-Match` and `If-None-Match`.
        tagged: whether its answer has an `ETag`.
    """

    method: str
    path: str
    need: Need
    summary: str
    answer: str
    handle: Callable[[Call], Awaitable[Any]]
    query: Mapping[str, Parameter] = field(default_factory=dict)
    body: Mapping[str, Mapping[str, Any]] | None = None
    errors: Sequence[int] = ()
    definition: str | None = None
    conditional: bool = False
    tagged: bool = False

    def route(self, surface: Surface) -> Route:
        """Return the route."""
        bodies = Bodies(surface.options.limits.body)

        async def answer(request: Request) -> Response:
            caller = surface.access.admit(request, self.need)
            given = parameters(request.scope["query_string"], tuple(self.query))
            content = b""
            if self.method != "GET":
                check_encoding(request.scope)
                content = await bodies.read(request.headers, request.receive)
            body = _object(content, self.body or {}, event=self.definition == "CloudEvent")
            if self.body is None and body:
                given |= _members(body, self.query, given)
            query = {name: self.query[name].read(name, values[0]) for name, values in given.items()}
            call = Call(surface, caller, request.path_params, query, body, content, request.headers)
            result = await self.handle(call)
            if isinstance(result, Response):
                return result
            content = orjson.dumps(result, option=orjson.OPT_UTC_Z)
            return Response(content, media_type="application/json", headers={"cache-control": "no-store"})

        return Route(self.path, answer, methods=[self.method])


def text(description: str) -> Parameter:
    """Return a parameter that is any text."""
    return Parameter(_text, {"type": "string", "maxLength": 2048, "pattern": _PLAIN}, description)


def choice(values: Sequence[str], description: str) -> Parameter:
    """Return a parameter that is one of some texts."""

    def read(name: str, value: str) -> str:
        if value not in values:
            raise bad_parameter(name, f"expected one of: {', '.join(values)}")
        return value

    return Parameter(read, {"type": "string", "enum": list(values)}, description)


def moment(description: str) -> Parameter:
    """Return a parameter that is a time with an offset."""
    return Parameter(_moment, {"type": "string", "format": "date-time"}, description)


def past(description: str) -> Parameter:
    """Return a parameter that is a time with an offset, or a duration ago."""
    forms = [{"format": "date-time"}, {"pattern": DURATION}]
    return Parameter(
        _past, {"type": "string", "anyOf": forms, "examples": ["2026-01-31T12:00:00Z", "10m"]}, description
    )


def flag(description: str) -> Parameter:
    """Return a parameter that is true or false."""
    return Parameter(boolean, {"type": "boolean"}, description)


def duration(description: str) -> Parameter:
    """Return a parameter that is a duration."""
    return Parameter(_duration, {"type": "string", "pattern": DURATION, "examples": ["30s", "10m", "1d"]}, description)


def rate(description: str) -> Parameter:
    """Return a parameter that is a rate; its value is the time between two."""
    return Parameter(_every, {"type": "string", "pattern": RATE, "examples": ["10/s", "500/m"]}, description)


def limit(most: int = MOST, default: int = 100) -> Parameter:
    """Return the parameter that says how long a page is."""

    def read(name: str, value: str) -> int:
        if not value.isascii() or not value.isdecimal() or len(value) > 6 or not 1 <= int(value) <= most:
            raise bad_parameter(name, f"expected a number from 1 to {most}")
        return int(value)

    schema = {"type": "integer", "minimum": 1, "maximum": most, "default": default}
    return Parameter(read, schema, "Length of the page.")


def cursor(listed: str) -> Parameter:
    """Return the parameter that is the `next` of a page of this list, and of no other; see `page()`."""

    def read(name: str, value: str) -> list[Any]:
        return _decoded(name, value, listed)

    return Parameter(read, {"type": "string"}, "The `next` of the page before.")


def page(listed: str, items: Sequence[Any], last: Sequence[Any] | None) -> dict[str, Any]:
    """Return a page of the list of this name; `last` is the key of its last item, None if no page follows."""
    return {"items": items, "next": None if last is None else cursor_of([listed, *last])}


def cursor_of(key: Sequence[Any]) -> str:
    """Return the key as a cursor, an opaque text."""
    return base64.urlsafe_b64encode(orjson.dumps(key)).decode().rstrip("=")


def _decoded(name: str, value: str, listed: str) -> list[Any]:
    """Return the key in a cursor of this list. Raise a `Problem`."""
    try:
        found = orjson.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
    except (ValueError, binascii.Error):
        found = None
    if not isinstance(found, list) or len(found) < 2 or found[0] != listed:
        raise bad_parameter(name, "expected the `next` of a page of this list")
    key = found[1:]
    if type(key[0]) is not int or not 0 <= key[0] < 2**63:
        raise bad_parameter(name, "expected the `next` of a page of this list")
    if not all(isinstance(each, str) and "\0" not in each for each in key[1:]):
        raise bad_parameter(name, "expected the `next` of a page of this list")
    return key


def _text(name: str, value: str) -> str:
    if len(value) > 2048 or not re.fullmatch(_PLAIN, value):
        raise bad_parameter(name, "expected text without control characters, at most 2048 long")
    return value


def _moment(name: str, value: str) -> datetime:
    found = rfc3339(name, value)
    if not EARLIEST <= found < LATEST:
        raise bad_parameter(name, "expected a year from 1900 to 8999")
    return found


def _past(name: str, value: str) -> datetime:
    return moment_or_ago(name, value)


def _duration(name: str, value: str) -> timedelta:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None


def _every(name: str, value: str) -> timedelta:
    try:
        return Rate.parse(value).interval
    except ValueError as error:
        raise bad_parameter(name, str(error)) from None


def _object(content: bytes, members: Mapping[str, Mapping[str, Any]], *, event: bool = False) -> Mapping[str, Any]:
    """
    Return the object in the body of a request; an empty body is an empty one.

    Members that are given twice are refused; in an `event` by its reader, which knows attributes from data.

    Raises:
        Problem: 400, it is no object, or has a member that is unknown or given twice.
    """
    if not content:
        return {}
    try:
        found = orjson.loads(content)
        if isinstance(found, dict) and not event:
            json.loads(content, object_pairs_hook=_refuse_twice)
    except (ValueError, RecursionError):
        raise Problem(400, "invalid-body", "expected a JSON object") from None
    if not isinstance(found, dict):
        raise Problem(400, "invalid-body", "expected a JSON object")
    for name in found:
        if members and name not in members:
            raise Problem(400, "invalid-body", f"{name[:40]!a}: unknown; expected {', '.join(members)}")
    return found


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    """Raise a `Problem` for a member that an object has twice, of which a reader sees one and the runner the other."""
    names = Counter(name for name, _ in pairs)
    for name, times in names.items():
        if times > 1:
            raise Problem(400, "invalid-body", f"{name[:40]!a}: given twice")


def _members(body: Mapping[str, Any], known: Mapping[str, Parameter], given: Collection[str]) -> dict[str, list[str]]:
    """Return the parameters that the body has, in the form of those of a query. Raise a `Problem`."""
    found = {}
    for name, value in body.items():
        if name not in known:
            expected = f"one of: {', '.join(known)}" if known else "none"
            raise Problem(400, "invalid-body", f"{name[:40]!a}: unknown; expected {expected}")
        if name in given:
            raise bad_parameter(name, "given twice")
        found[name] = [_written(name, value, known[name].schema["type"])]
    return found


def _written(name: str, value: object, kind: str) -> str:
    """Return a JSON value of this type as a query would have it. Raise a `Problem` for one of another type."""
    match kind, value:
        case "boolean", bool():
            return "true" if value else "false"
        case "string", str():
            return value
        case "integer", int() if not isinstance(value, bool):
            return str(value)
    raise bad_parameter(name, f"expected a JSON {kind}")
