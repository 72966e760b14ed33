"""The schemas of all answers, and of events, as `/openapi.json` has them; a test holds each against real answers."""

from __future__ import annotations

from typing import Any

__all__ = ["ANSWERS", "PUBLISHING"]

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_DECIMAL: Schema = {"type": "number"}
_BOOL: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "format": "date-time"}
_ANY: Schema = {}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(**members: Schema) -> Schema:
    """Return an object that has all these members."""
    return {"type": "object", "properties": members, "required": list(members)}


def _list(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _page(name: str) -> Schema:
    return _object(items=_list(_ref(name)), next=_or_null(_TEXT))


_FAILING = _object(clause=_TEXT, expected=_ANY, actual=_ANY)
_COUNTS: Schema = {"type": "object", "additionalProperties": _NUMBER}
_NULLABLE_TEXT, _NULLABLE_TIME = _or_null(_TEXT), _or_null(_TIME)

_DELIVERY = {
    "seq": _NUMBER,
    "subscription": _TEXT,
    "source": _TEXT,
    "id": _TEXT,
    "type": _TEXT,
    "state": {"enum": ["pending", "leased", "delivered", "dead", "cancelled"]},
    "attempts": _NUMBER,
    "due_at": _NULLABLE_TIME,
    "held_by": _NULLABLE_TEXT,
    "last_error": _NULLABLE_TEXT,
    "updated_at": _TIME,
}

_SUBSCRIPTION = {
    "name": _TEXT,
    "active": _BOOL,
    "paused": _BOOL,
    "paused_at": _NULLABLE_TIME,
    "paused_by": _NULLABLE_TEXT,
    "origin": _TEXT,
    "expired": _BOOL,
    "sink": _TEXT,
    "types": _list(_TEXT),
    "destination": _or_null({"type": "object", "description": "Its own sink; what is secret is `***`."}),
    "expires_at": _NULLABLE_TIME,
    "breaker_state": {"enum": ["closed", "open", "half-open"]},
    "breaker_left": _or_null(_DECIMAL),
    "breaker_trips": _NUMBER,
    "deliveries": _COUNTS,
}

_SCHEDULE = {
    "name": _TEXT,
    "state": _TEXT,
    "active": _BOOL,
    "paused": _BOOL,
    "origin": _TEXT,
    "event": {"type": "object"},
    "next_at": _NULLABLE_TIME,
    "due_at": _NULLABLE_TIME,
    "last_at": _NULLABLE_TIME,
    "missed": _NUMBER,
    "skipped": _NUMBER,
    "updated_at": _TIME,
}

_CLOUD_EVENT: Schema = {
    "type": "object",
    "description": "A CloudEvent 1.0 in its JSON format; every other member is an extension.",
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "format": "uri-reference", "minLength": 1},
        "type": {"type": "string", "minLength": 1},
        "subject": {"type": ["string", "null"], "minLength": 1},
        "time": _or_null(_TIME),
        "datacontenttype": {"type": ["string", "null"], "examples": ["application/json"]},
        "dataschema": {"type": ["string", "null"], "format": "uri", "minLength": 1},
        "data": {"description": "Any JSON; a text, where `datacontenttype` is not that of JSON."},
        "data_base64": {"type": ["string", "null"], "contentEncoding": "base64"},
    },
    "required": ["specversion", "id", "source", "type"],
    "not": {
        "required": ["data", "data_base64"],
        "properties": {"data": {"not": {"type": "null"}}, "data_base64": {"type": "string"}},
    },
    "propertyNames": {"pattern": "^([a-z0-9]{1,100}|data_base64)$"},
    "additionalProperties": {"type": ["string", "integer", "boolean", "null"]},
}

ANSWERS: dict[str, Schema] = {
    "CloudEvent": _CLOUD_EVENT,
    "Problem": _object(type=_TEXT, title=_TEXT, status=_NUMBER),
    "Event": _object(
        seq=_NUMBER,
        state={"enum": ["scheduled", "queued", "settled", "cancelled"]},
        created_at=_TIME,
        due_at=_NULLABLE_TIME,
        deliveries=_COUNTS,
        event={"type": "object", "description": "The CloudEvent in its JSON format."},
    ),
    "EventPage": _page("Event"),
    "EventCancelled": _object(seq=_NUMBER, cancelled=_BOOL, was=_TEXT, deliveries=_NUMBER),
    "Rescheduled": _object(seq=_NUMBER, due_at=_TIME, event=_BOOL, deliveries=_NUMBER, running=_NUMBER),
    "Delivery": _object(**_DELIVERY),
    "DeliveryPage": _page("Delivery"),
    "Try": _object(
        number=_NUMBER,
        at=_TIME,
        duration=_DECIMAL,
        status=_or_null(_NUMBER),
        error=_NULLABLE_TEXT,
        excerpt=_NULLABLE_TEXT,
    ),
    "DeliveryWithTries": _object(**_DELIVERY, tries=_list(_ref("Try"))),
    "Retried": _object(retried=_NUMBER),
    "RetriedMany": _object(retried=_NUMBER, dry_run=_BOOL),
    "Cancelled": _object(cancelled=_NUMBER),
    "Changed": _object(changed=_BOOL),
    "Subscription": _object(**_SUBSCRIPTION),
    "SubscriptionPut": _object(**_SUBSCRIPTION, changed=_BOOL),
    "SubscriptionPage": _page("Subscription"),
    "SubscriptionRemoved": _object(name=_TEXT, removed=_BOOL, cancelled=_NUMBER),
    "Removed": _object(name=_TEXT, removed=_BOOL),
    "Paused": _object(name=_TEXT, paused=_BOOL, changed=_BOOL),
    "Replayed": _object(replayed=_NUMBER, dry_run=_BOOL),
    "Explanation": _object(
        name=_TEXT,
        matched=_BOOL,
        failing=_or_null(_FAILING),
        version=_NUMBER,
        written_at=_TIME,
        active=_BOOL,
    ),
    "Schedule": _object(**_SCHEDULE),
    "SchedulePut": _object(**_SCHEDULE, changed=_BOOL),
    "SchedulePage": _page("Schedule"),
    "NextTimes": _object(name=_TEXT, next=_list(_TIME)),
    "DryRun": _object(
        dry_run={"const": True},
        id=_TEXT,
        source=_TEXT,
        type=_TEXT,
        due_at=_NULLABLE_TIME,
        matched=_NUMBER,
        subscriptions=_or_null(
            _list(_object(name=_TEXT, matched=_BOOL, failing=_or_null(_FAILING), held=_NULLABLE_TEXT))
        ),
    ),
    "Receipt": _object(id=_TEXT, source=_TEXT, seq=_NUMBER, duplicate=_BOOL),
    "Instance": _object(
        id=_TEXT,
        host=_TEXT,
        pid=_NUMBER,
        version=_TEXT,
        started_at=_TIME,
        heartbeat_at=_TIME,
        alive=_BOOL,
        state={"enum": ["working", "stuck", "silent"]},
        progress_at=_NULLABLE_TIME,
        lag=_or_null(_DECIMAL),
        running=_or_null(_NUMBER),
        sinks=_or_null(_list(_TEXT)),
        strategies=_or_null(_list(_object(name=_TEXT, hears=_or_null(_BOOL), detail=_TEXT))),
        configuration=_or_null(
            _object(
                digest=_TEXT,
                loaded_at=_TIME,
                outcome=_or_null({"enum": ["reloaded", "refused", "failed"]}),
                tried_at=_NULLABLE_TIME,
                faults=_list(_TEXT),
            )
        ),
    ),
    "InstancePage": _page("Instance"),
    "Action": _object(
        seq=_NUMBER,
        at=_TIME,
        who=_TEXT,
        action=_TEXT,
        target=_NULLABLE_TEXT,
        parameters={"type": "object"},
        outcome={"enum": ["begun", "done", "refused", "failed", "interrupted"]},
        touched=_NUMBER,
        detail=_NULLABLE_TEXT,
        ended_at=_NULLABLE_TIME,
    ),
    "ActionPage": _page("Action"),
    "Reloaded": _object(
        digest=_TEXT,
        dry_run=_BOOL,
        changes=_list(
            _object(
                path=_TEXT,
                change={"enum": ["added", "removed", "changed"]},
                was=_ANY,
                now=_ANY,
                applies={"enum": ["live", "restart"]},
            )
        ),
    ),
    "Health": _object(status={"enum": ["ok", "failing"]}),
    "Readiness": _object(
        ready=_BOOL,
        phase=_TEXT,
        store=_BOOL,
        tables=_or_null(_BOOL),
        strategies=_list(_object(name=_TEXT, hears=_or_null(_BOOL))),
    ),
    "Finding": _object(
        verdict={"enum": ["note", "degraded", "down"]}, kind=_TEXT, subject=_NULLABLE_TEXT, cause=_TEXT, cure=_TEXT
    ),
    "Status": _object(
        verdict={"enum": ["healthy", "degraded", "down"]},
        exit_code=_NUMBER,
        store=_BOOL,
        tables=_or_null(_BOOL),
        findings=_list(_ref("Finding")),
    ),
}


def _problem() -> Schema:
    return {"description": "A problem.", "content": {"application/problem+json": {"schema": _ref("Problem")}}}


PUBLISHING: dict[str, Schema] = {
    "/events": {
        "post": {
            "summary": "Publish one event, or a batch of them, as CloudEvents 1.0.2 over HTTP.",
            "operationId": "post_events",
            "description": "Needs the scope `publish`. Binary, structured and batched mode; the content type decides.",
            "parameters": [
                {"name": "delay", "in": "query", "schema": {"type": "string", "examples": ["10m"]}},
                {"name": "deliver_at", "in": "query", "schema": _TIME},
                {"name": "dry_run", "in": "query", "schema": _BOOL},
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/cloudevents+json": {"schema": _ref("CloudEvent")},
                    "application/cloudevents-batch+json": {"schema": _list(_ref("CloudEvent"))},
                },
            },
            "responses": {
                "202": {
                    "description": "Recorded; a list for a batch.",
                    "content": {"application/json": {"schema": {"anyOf": [_ref("Receipt"), _list(_ref("Receipt"))]}}},
                },
                "200": {
                    "description": "A dry run; a list for a batch.",
                    "content": {"application/json": {"schema": {"anyOf": [_ref("DryRun"), _list(_ref("DryRun"))]}}},
                },
                **{str(status): _problem() for status in (400, 401, 403, 408, 409, 413, 415, 421, 422, 429, 500, 503)},
            },
        }
    },
    "/events/stream": {
        "get": {
            "summary": "Events as they are recorded, as server-sent events.",
            "operationId": "get_events_stream",
            "description": "Needs the scope `read` or `subscribe`.",
            "parameters": [
                {"name": "types", "in": "query", "schema": _TEXT},
                {"name": "since", "in": "query", "schema": {"type": "string", "examples": ["10m"]}},
                {"name": "Last-Event-ID", "in": "header", "schema": _TEXT},
            ],
            "responses": {
                "200": {"description": "The stream.", "content": {"text/event-stream": {"schema": _TEXT}}},
                **{str(status): _problem() for status in (400, 401, 403, 421, 503)},
            },
        }
    },
    "/metrics": {
        "get": {
            "summary": "Metrics, as Prometheus reads them.",
            "operationId": "get_metrics",
            "description": "Needs the scope `read`, but for a listener on the loopback or a unix socket.",
            "security": [{}, {"token": []}],
            "responses": {
                "200": {"description": "The metrics.", "content": {"text/plain": {"schema": _TEXT}}},
                **{str(status): _problem() for status in (401, 403, 421)},
            },
        }
    },
}
