"""`/openapi.json`: every path, made of the endpoints, with a schema for every answer (OpenAPI 3.1)."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response
from starlette.routing import Route

from ..config.fields import NAME
from ..service.version import __version__
from .answers import ANSWERS, PUBLISHING
from .definitions import PLACE, schemas
from .problems import MEDIA_TYPE

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from .endpoints import Endpoint
    from .surface import Surface

__all__ = ["document", "routes"]

_ALWAYS = (400, 401, 403, 421, 429, 500, 503)
_WITH_BODY = (408, 413, 415)
_SCOPES = {"events": "`read`", "subscribe": "`subscribe` or `admin`"}
_PROBES = {
    "/healthz": ("Whether the process goes round.", "Health"),
    "/readyz": ("Whether it can be given work.", "Readiness"),
}
_PROBE = {"200": "It is.", "503": "It is not."}
_NAME = {"type": "string", "pattern": NAME}
_REFERENCE = {"type": "string", "minLength": 1}
_TAG = {"ETag": {"description": "Names this state, for `If-Match`.", "schema": {"type": "string"}}}
_PRECONDITIONS = {
    "If-Match": "Only if it is in one of the states with these entity tags.",
    "If-None-Match": "Only if it is in none of the states with these entity tags; `*`: only if there is none.",
}
_AGAIN = {"Retry-After": {"description": "Seconds until it may be tried again.", "schema": {"type": "string"}}}
_WAIT = ("429", "503")


def routes(surface: Surface, endpoints: Sequence[Endpoint]) -> list[BaseRoute]:
    """Return the route, which needs no token: the document holds no secret."""

    @functools.cache  # made on demand: the schemas of definitions take 50 ms
    def content() -> bytes:
        return orjson.dumps(document(endpoints, surface.options.root_path))

    async def openapi(request: Request) -> Response:
        return Response(content(), media_type="application/json")

    return [Route("/openapi.json", openapi)]


def document(endpoints: Sequence[Endpoint], root_path: str = "") -> dict[str, Any]:
    """Return the OpenAPI document; `root_path` is the path under which a proxy shows the bus."""
    paths: dict[str, dict[str, Any]] = {}
    for each in endpoints:
        paths.setdefault(each.path.replace(":path", ""), {})[each.method.lower()] = _operation(each)
    for path, methods in PUBLISHING.items():
        paths.setdefault(path, {}).update(methods)
    for path, (what, name) in _PROBES.items():
        shape = _json({"$ref": f"{PLACE}{name}"})
        answers = {code: {"description": text, **shape} for code, text in _PROBE.items()}
        paths[path] = {"get": {"summary": what, "security": [], "responses": answers | _problems((421,))}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "runner", "version": __version__, "description": "A durable event bus."},
        **({"servers": [{"url": root_path}]} if root_path else {}),
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {**ANSWERS, **schemas()},
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _NAME if name == "name" else _REFERENCE}
        for name in re.findall(r"\{(\w+)", endpoint.path)
    ]
    for name, parameter in endpoint.query.items():
        parameters.append(
            {"name": name, "in": "query", "schema": dict(parameter.schema), "description": parameter.description}
        )
    if endpoint.conditional:
        for name, text in _PRECONDITIONS.items():
            parameters.append({"name": name, "in": "header", "schema": {"type": "string"}, "description": text})
    ok: dict[str, Any] = {"description": endpoint.summary, **_json({"$ref": f"{PLACE}{endpoint.answer}"})}
    if endpoint.tagged:
        ok["headers"] = _TAG
    answers = {"200": ok, **({"201": ok} if endpoint.method == "PUT" else {})}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^a-z]+', '_', endpoint.path.replace(':path', ''))}".rstrip(
            "_"
        ),
        "description": f"Needs the scope {_SCOPES.get(endpoint.need) or f'`{endpoint.need}`'}.",
        "parameters": parameters,
        "responses": answers
        | _problems((*_ALWAYS, *endpoint.errors, *(() if endpoint.method == "GET" else _WITH_BODY))),
    }
    if endpoint.body is not None:
        schema: dict[str, Any] = {"type": "object"}
        if endpoint.definition is not None:
            schema = {"$ref": f"{PLACE}{endpoint.definition}"}
        elif endpoint.body:
            schema |= {"properties": {name: dict(each) for name, each in endpoint.body.items()}}
        operation["requestBody"] = {"required": True, **_json(schema)}
    elif endpoint.method == "POST" and endpoint.query:
        members = {name: dict(each.schema) for name, each in endpoint.query.items()}
        operation["requestBody"] = {
            "description": "The parameters, unless they stand in the query.",
            **_json({"type": "object", "properties": members, "additionalProperties": False}),
        }
    return operation


def _problems(statuses: Sequence[int]) -> dict[str, Any]:
    problem = {"description": "A problem.", "content": {MEDIA_TYPE: {"schema": {"$ref": f"{PLACE}Problem"}}}}
    codes = [str(status) for status in sorted(set(statuses))]
    return {code: problem | ({"headers": _AGAIN} if code in _WAIT else {}) for code in codes}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
