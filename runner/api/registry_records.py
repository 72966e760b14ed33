"""`/subscriptions`, `/schedules`, `/instances` and `/status`: the registry, the processes and the verdict."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import orjson
from starlette.responses import Response

from ..cloudevents import decode_json
from ..config.written import read_schedule
from ..diagnosis.look import look
from ..diagnosis.matching import mismatch
from ..diagnosis.shapes import clause_json, report_json
from ..diagnosis.status import judge, unreachable
from ..errors import StorageUnavailable
from ..operations import Operations
from ..operations.holds import Pausing
from ..operations.preconditions import Precondition, schedule_tag, subscription_tag
from ..operations.shapes import instance_json, receipt_json, schedule_json, subscription_json
from ..operations.subscriptions import MADE
from ..service.uri import check_references
from ..storage.contract.corrections import ReplayQuery
from ..storage.contract.records import SubscriptionView
from . import definitions
from .endpoints import Call, Endpoint, flag, limit, past, rate, text
from .problems import Problem

__all__ = ["ENDPOINTS"]

_SUBSCRIPTION, _SCHEDULE = "/subscriptions/{name}", "/schedules/{name}"


async def _subscriptions(call: Call) -> dict[str, Any]:
    known = await call.surface.storage.records.registered()
    return {"items": [subscription_json(each) for each in known], "next": None}


async def _subscription(call: Call) -> Response:
    return _tagged(await call.surface.storage.records.subscription(call.path["name"]))


async def _put_subscription(call: Call) -> Response:
    name, body = call.path["name"], call.body
    subscriptions = call.operations.subscriptions
    definitions.check("SubscriptionBody", body, lambda: subscriptions.read(name, body, _named(body)))
    _, known = await call.surface.storage.registry.subscriptions()
    own = [each.subscription for each in known if each.origin.startswith(MADE)]
    made = {each.name for each in own if each.dead_letter_of is None}
    _check_room(call, name, made, "subscriptions")
    put = await subscriptions.put(name, body, precondition=_precondition(call))
    view = await call.surface.storage.records.subscription(name)
    content = subscription_json(view._replace(registered=put.registered)) | {"changed": put.changed}
    return _answer(content, subscription_tag(put.registered), 201 if put.created else 200)


def _check_room(call: Call, name: str, made: Collection[str], what: str) -> None:
    """Raise a `Problem` of status 409 if no more definitions are taken; one that is there may be replaced."""
    most = call.surface.options.limits.definitions
    if name not in made and len(made) >= most:
        detail = f"there are {len(made)} {what} made by the API, and api.limits.definitions allows {most}; remove some"
        raise Problem(409, "too-many-definitions", detail, limit=most)


async def _remove_subscription(call: Call) -> dict[str, Any]:
    name = call.path["name"]
    view = await call.surface.storage.records.subscription(name)
    file = {name} if view.registered.origin == "file" and view.active else set[str]()
    remove = call.operations.subscriptions.remove
    return {"name": name, "removed": True, "cancelled": await remove(name, file=file, precondition=_precondition(call))}


def _named(body: Mapping[str, Any]) -> list[str]:
    """Return the sinks that a body names, whether they exist or not."""
    return [each for each in (body.get("sink"), body.get("dead_letter")) if isinstance(each, str)]


def _tagged(view: SubscriptionView) -> Response:
    return _answer(subscription_json(view), subscription_tag(view.registered))


def _answer(content: dict[str, Any], tag: str, status: int = 200) -> Response:
    headers = {"etag": tag, "cache-control": "no-store"}
    return Response(
        orjson.dumps(content, option=orjson.OPT_UTC_Z), status, headers=headers, media_type="application/json"
    )


def _precondition(call: Call) -> Precondition:
    """Return the state that a request is meant for (RFC 9110 §13.1)."""
    return Precondition(_tags(call, "if-match"), _tags(call, "if-none-match") or frozenset())


def _tags(call: Call, header: str) -> frozenset[str] | None:
    lines = call.headers.getlist(header)  # several are one list (RFC 9110 §5.3)
    return frozenset(each.strip() for line in lines for each in line.split(",")) if lines else None


def _pausing(
    paused: bool, operations_of: Callable[[Operations], Pausing]
) -> Callable[[Call], Awaitable[dict[str, Any]]]:
    async def change(call: Call) -> dict[str, Any]:
        name = call.path["name"]
        changed = await operations_of(call.operations).set_paused(name, paused, call.caller.name)
        return {"name": name, "paused": paused, "changed": changed}

    return change


async def _replay(call: Call) -> dict[str, Any]:
    query = dict(call.query)
    dry_run, every = query.pop("dry_run", False), query.pop("rate", None)
    asked = ReplayQuery(subscription=call.path["name"], **query)
    return {
        "replayed": await call.operations.replay(asked, every=every, dry_run=dry_run),
        "dry_run": dry_run,
    }


async def _explain(call: Call) -> dict[str, Any]:
    event = decode_json(call.content)
    check_references(event.source, event.dataschema)  # as a publish would
    hold = await call.surface.storage.overview.hold(0, call.path["name"])
    failing = mismatch(hold.registered.subscription, event)
    told = {"version": hold.version, "written_at": hold.updated_at, "active": hold.active}
    return {"name": call.path["name"], "matched": failing is None, "failing": clause_json(failing), **told}


async def _schedules(call: Call) -> dict[str, Any]:
    return {"items": [schedule_json(each) for each in await call.operations.schedules.all()], "next": None}


async def _schedule(call: Call) -> Response:
    view = await call.operations.schedules.one(call.path["name"])
    return _answer(schedule_json(view), schedule_tag(view))


async def _put_schedule(call: Call) -> Response:
    name, schedules = call.path["name"], call.operations.schedules
    schedule = read_schedule(name, call.body)
    definitions.check("ScheduleBody", call.body, lambda: schedule)
    made = {each.schedule.name for each in await schedules.all() if each.origin == "api"}
    _check_room(call, name, made, "schedules")
    put = await schedules.replace(schedule, _precondition(call))
    content = schedule_json(put.view) | {"changed": put.changed}
    return _answer(content, schedule_tag(put.view), 201 if put.created else 200)


async def _remove_schedule(call: Call) -> dict[str, Any]:
    name = call.path["name"]
    await call.operations.schedules.remove(name, precondition=_precondition(call))
    return {"name": name, "removed": True}


async def _run_schedule(call: Call) -> dict[str, Any]:
    return receipt_json(await call.operations.schedules.run(call.path["name"]))


async def _next(call: Call) -> dict[str, Any]:
    times = await call.operations.schedules.upcoming(call.path["name"], call.query.get("n", 10))
    return {"name": call.path["name"], "next": list(times)}


async def _instances(call: Call) -> dict[str, Any]:
    return {"items": [instance_json(each) for each in await call.surface.storage.records.instances()], "next": None}


async def _status(call: Call) -> dict[str, Any]:
    try:
        report = judge(await look(call.surface.storage))
    except StorageUnavailable:
        report = unreachable("the store cannot be reached", "start the database")
    return report_json(report)


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/subscriptions",
        need="read",
        summary="List subscriptions.",
        answer="SubscriptionPage",
        handle=_subscriptions,
    ),
    Endpoint(
        method="GET",
        path=_SUBSCRIPTION,
        need="read",
        summary="One subscription.",
        answer="Subscription",
        handle=_subscription,
        tagged=True,
        errors=(404,),
    ),
    Endpoint(
        method="PUT",
        path=_SUBSCRIPTION,
        need="subscribe",
        summary="Make or replace a subscription that is in no file: the keys of the file, without its name.",
        answer="SubscriptionPut",
        handle=_put_subscription,
        conditional=True,
        tagged=True,
        body={},
        definition="SubscriptionBody",
        errors=(409, 412, 422),
    ),
    Endpoint(
        method="DELETE",
        path=_SUBSCRIPTION,
        need="subscribe",
        summary="Remove a subscription that is in no file, and cancel what waits for it.",
        answer="SubscriptionRemoved",
        handle=_remove_subscription,
        conditional=True,
        errors=(404, 409, 412),
    ),
    Endpoint(
        method="POST",
        path=f"{_SUBSCRIPTION}/pause",
        need="admin",
        summary="Deliver nothing more to it until it is resumed.",
        answer="Paused",
        handle=_pausing(True, lambda operations: operations.subscriptions),
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path=f"{_SUBSCRIPTION}/resume",
        need="admin",
        summary="Deliver to it again, and close its breaker.",
        answer="Paused",
        handle=_pausing(False, lambda operations: operations.subscriptions),
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path=f"{_SUBSCRIPTION}/replay",
        need="admin",
        summary="Deliver recorded events to it again, or for the first time.",
        answer="Replayed",
        handle=_replay,
        query={
            "type": text("Only these types; `*` stands for any characters."),
            "source": text("Only these sources; `*` stands for any characters."),
            "since": past("Recorded at or after this time."),
            "until": past("Recorded before this time."),
            "missing": flag("Only those that it has no delivery of."),
            "rate": rate("Spread them over time."),
            "dry_run": flag("Say how many there are, and do nothing."),
        },
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path=f"{_SUBSCRIPTION}/explain",
        need="read",
        summary="Whether it matches an event, a CloudEvent in JSON, or which clause fails on which value.",
        answer="Explanation",
        handle=_explain,
        body={},
        definition="CloudEvent",
        errors=(404,),
    ),
    Endpoint(
        method="GET",
        path="/schedules",
        need="read",
        summary="List schedules.",
        answer="SchedulePage",
        handle=_schedules,
    ),
    Endpoint(
        method="GET",
        path=f"{_SCHEDULE}/next",
        need="read",
        summary="The next times of a schedule.",
        answer="NextTimes",
        handle=_next,
        query={"n": limit(1000, 10)},
        errors=(404,),
    ),
    Endpoint(
        method="GET",
        path=_SCHEDULE,
        need="read",
        summary="One schedule.",
        answer="Schedule",
        handle=_schedule,
        tagged=True,
        errors=(404,),
    ),
    Endpoint(
        method="PUT",
        path=_SCHEDULE,
        need="admin",
        summary="Make or replace a schedule that is in no file: the keys of the file, without its name.",
        answer="SchedulePut",
        handle=_put_schedule,
        conditional=True,
        tagged=True,
        body={},
        definition="ScheduleBody",
        errors=(409, 412, 422),
    ),
    Endpoint(
        method="DELETE",
        path=_SCHEDULE,
        need="admin",
        summary="Remove a schedule that is in no file.",
        answer="Removed",
        handle=_remove_schedule,
        conditional=True,
        errors=(404, 409, 412),
    ),
    Endpoint(
        method="POST",
        path=f"{_SCHEDULE}/pause",
        need="admin",
        summary="Publish nothing for it until it is resumed.",
        answer="Paused",
        handle=_pausing(True, lambda operations: operations.schedules),
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path=f"{_SCHEDULE}/resume",
        need="admin",
        summary="Publish for it again.",
        answer="Paused",
        handle=_pausing(False, lambda operations: operations.schedules),
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path=f"{_SCHEDULE}/run",
        need="admin",
        summary="Publish its event now, beside its times.",
        answer="Receipt",
        handle=_run_schedule,
        errors=(404, 409),
    ),
    Endpoint(
        method="GET",
        path="/instances",
        need="read",
        summary="List the processes that reported, the latest first.",
        answer="InstancePage",
        handle=_instances,
    ),
    Endpoint(
        method="GET",
        path="/status",
        need="read",
        summary="The verdict on the deployment, as `runner status --json` says it.",
        answer="Status",
        handle=_status,
    ),
)
