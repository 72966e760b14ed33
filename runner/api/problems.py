"""Errors as answers: problem details in JSON (RFC 9457), each with a stable type."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import (
    ChangedMeanwhile,
    ConfigError,
    EventConflict,
    EventError,
    EventTooLarge,
    FormatUnsupported,
    NotFound,
    RunnerError,
    SchemaViolation,
    StateConflict,
    StorageError,
    StorageRefused,
    StorageUnavailable,
    readable,
)

__all__ = ["MEDIA_TYPE", "TYPE_PREFIX", "Problem", "problem_of", "problem_response"]

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:runner:problem:"

_RETRY_AFTER = "1"  # seconds

# From the most specific error to the most general one: status, name, and whether its text is for the caller.
_ERRORS: tuple[tuple[type[RunnerError], int, str, bool], ...] = (
    (ConfigError, 422, "invalid-definition", True),
    (NotFound, 404, "not-found", True),
    (ChangedMeanwhile, 412, "changed-meanwhile", True),
    (StateConflict, 409, "state-conflict", True),
    (EventConflict, 409, "event-conflict", True),
    (SchemaViolation, 422, "schema-violated", True),
    (EventTooLarge, 413, "too-large", True),
    (FormatUnsupported, 415, "unsupported-media-type", True),
    (EventError, 400, "invalid-event", True),
    (StorageUnavailable, 503, "store-unavailable", False),
    (StorageRefused, 422, "refused-by-store", False),
    (StorageError, 500, "store-error", False),
)

_DETAILS = {
    "store-unavailable": "the store cannot be reached; whether anything was written is unknown, the same again is safe",
    "refused-by-store": "the store refuses what is in it",
    "store-error": "the store answered with an error; the log of the runner says which",
    "internal": "something unforeseen happened; the log of the runner says what",
}

_NAMES = {404: "no-such-path", 405: "method-not-allowed", 413: "too-large", 415: "unsupported-media-type"}


class Problem(Exception):
    """
    An error that carries its own answer.

    Attributes:
        status: of the answer.
        name: stable; the `type` is `urn:runner:problem:` and the name.
        detail: a sentence for people, without anything secret.
        headers: of the answer.
        extensions: further members of the answer.
    """

    def __init__(
        self, status: int, name: str, detail: str = "", *, headers: Mapping[str, str] | None = None, **extensions: Any
    ) -> None:
        super().__init__(detail or name)
        self.status = status
        self.name = name
        self.detail = detail
        self.headers = dict(headers or {})
        self.extensions = extensions

    def content(self) -> dict[str, Any]:
        """Return the members of the answer."""
        return {
            "type": TYPE_PREFIX + self.name,
            "title": self.name.replace("-", " "),
            "status": self.status,
            **({"detail": self.detail} if self.detail else {}),
            **self.extensions,
        }


def problem_of(error: Exception, *, starting: bool = False) -> Problem:
    """
    Return the problem of an error; the text of an error that is not this package's is not shown.

    Args:
        starting: whether the process still starts, and so may not have made its tables yet.
    """
    if isinstance(error, Problem):
        return error
    if starting and isinstance(error, StorageError):
        detail = "the process still starts, and its tables may not be there yet; the same again is safe"
        return Problem(503, "store-unavailable", detail, headers={"retry-after": _RETRY_AFTER})
    if isinstance(error, HTTPException):
        name = _NAMES.get(error.status_code) or HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return Problem(error.status_code, name, headers=error.headers)
    for kind, status, name, told in _ERRORS:
        if isinstance(error, kind):
            detail = readable(str(error)) if told else _DETAILS[name]
            headers = {"retry-after": _RETRY_AFTER} if status == 503 else None
            return Problem(status, name, detail, headers=headers, **_place_of(error))
    return Problem(500, "internal", _DETAILS["internal"])


def _place_of(error: RunnerError) -> dict[str, Any]:
    """Return the place of an error: the attribute, the event of a batch, the part of the data."""
    place = {name: getattr(error, name, None) for name in ("attribute", "index", "pointer")}
    return {name: value for name, value in place.items() if value is not None}


def problem_response(problem: Problem) -> Response:
    """Return the answer."""
    return Response(orjson.dumps(problem.content()), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)
