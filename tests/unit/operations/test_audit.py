"""Every action by hand leaves one row in the audit log."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest

from runner.delivery import DeliveryState
from runner.errors import NotFound, StorageUnavailable
from runner.log import redaction
from runner.operations import DeliveryRef, Operations
from runner.operations.destinations import Keeper
from runner.operations.schedules import ScheduleOperations
from runner.operations.subscriptions import SubscriptionOperations, _told
from runner.policies.schedule import EventTemplate, Schedule
from runner.policies.sealing import Keyring
from runner.storage import corrections
from runner.storage.contract.archive import Retention
from runner.storage.contract.audit import ActionOutcome, ActionQuery, ActionView
from runner.storage.contract.corrections import ReplayQuery
from runner.storage.contract.records import DeliveryQuery
from runner.storage.tables import events, scheduled

from .test_operations import CRM, DEAD, DELIVERED, PENDING, START, Bus
from .test_operations import bus as bus  # the fixture

DONE, REFUSED, FAILED, INTERRUPTED = (ActionOutcome(each) for each in ("done", "refused", "failed", "interrupted"))
PULSE = Schedule(name="pulse", every=timedelta(minutes=1), event=EventTemplate(type="pulse"))


class Case(NamedTuple):
    """An action: the state of the delivery before it, and what the log says afterwards."""

    state: DeliveryState
    act: Callable[[Operations], Awaitable[Any]]
    name: str
    target: str | None
    parameters: dict[str, Any]
    touched: int


HOUR = timedelta(hours=1)
CASES = {
    "retry": Case(
        DEAD,
        lambda o: o.retry(DeliveryQuery(subscription="crm", state=DEAD, limit=None), every=timedelta(seconds=0.1)),
        "deliveries.retry",
        None,
        {"subscription": "crm", "state": "dead", "every": "0.1s"},
        1,
    ),
    "retry one": Case(DEAD, lambda o: o.retry(CRM), "deliveries.retry", "o1 crm", {}, 1),
    "cancel": Case(PENDING, lambda o: o.cancel(CRM), "deliveries.cancel", "o1 crm", {}, 1),
    "ack": Case(PENDING, lambda o: o.ack("o1", "crm"), "deliveries.ack", "o1 crm", {}, 1),
    "cancel_event": Case(PENDING, lambda o: o.cancel_event("o1"), "events.cancel", "o1", {}, 1),
    "reschedule": Case(
        PENDING, lambda o: o.reschedule("o1", delay=HOUR), "events.reschedule", "o1", {"delay": "3600s"}, 1
    ),
    "replay": Case(
        DELIVERED,
        lambda o: o.replay(ReplayQuery(subscription="crm", since=START)),
        "subscriptions.replay",
        "crm",
        {"since": "2026-01-31T12:00:00Z"},
        1,
    ),
    "subscriptions.set_paused": Case(
        DEAD, lambda o: o.subscriptions.set_paused("crm", True, "ann"), "subscriptions.pause", "crm", {"by": "ann"}, 1
    ),
    "resume": Case(
        DEAD, lambda o: o.subscriptions.set_paused("crm", False, "ops"), "subscriptions.resume", "crm", {}, 0
    ),
    "subscriptions.put": Case(
        DEAD,
        lambda o: o.subscriptions.put("erp", {"sink": "log", "types": ["a.*"]}, sinks=["log"]),
        "subscriptions.put",
        "erp",
        {"types": ["a.*"], "sink": "log"},
        1,
    ),
    "subscriptions.remove": Case(
        PENDING,
        lambda o: o.subscriptions.remove("crm", force=True),
        "subscriptions.remove",
        "crm",
        {"force": True},
        2,
    ),
    "subscriptions.reseal": Case(DEAD, lambda o: resealing(o).reseal(), "secrets.reseal", None, {}, 0),
    "prune": Case(
        DELIVERED,
        lambda o: o.prune(Retention(delivered=timedelta(0))),
        "events.prune",
        None,
        {"delivered": "0s"},
        1,
    ),
    "schedules.put": Case(
        DEAD, lambda o: o.schedules.put(PULSE), "schedules.put", "pulse", {"every": "60s", "timezone": "UTC"}, 1
    ),
    "schedules.set_paused": Case(
        DEAD, lambda o: on_pulse(o, o.schedules.set_paused("pulse", True)), "schedules.pause", "pulse", {}, 1
    ),
    "schedules.run": Case(DEAD, lambda o: on_pulse(o, o.schedules.run("pulse")), "schedules.run", "pulse", {}, 1),
    "schedules.remove": Case(
        DEAD, lambda o: on_pulse(o, o.schedules.remove("pulse")), "schedules.remove", "pulse", {}, 1
    ),
}
LOOKS = {"by", "delivery", "holds", "matcher", "query", "schedules.all", "schedules.one", "schedules.upcoming"} | {
    "subscriptions.read"
}
OTHERS = {"schedules.replace", "subscriptions.remove_expired"}  # what `put()` calls, and what calls `remove()`


def resealing(operations: Operations) -> SubscriptionOperations:
    keeper = Keeper(Keyring(["k" * 32]))
    return SubscriptionOperations(operations._storage, lambda: None, operations.audit, keeper)


async def on_pulse(operations: Operations, act: Awaitable[Any]) -> None:
    await operations.schedules.put(PULSE)
    await act


async def entries(bus: Bus) -> list[ActionView]:
    return list(await bus.storage.audit.actions(ActionQuery()))


def public(part: type, prefix: str = "") -> set[str]:
    found = inspect.getmembers(part, inspect.isfunction)
    return {prefix + name for name, _ in found if not name.startswith("_")}


def test_every_operation_is_one_that_looks_or_is_held_to_its_entry_here() -> None:
    parts = public(ScheduleOperations, "schedules.") | public(SubscriptionOperations, "subscriptions.")
    assert public(Operations) | parts == LOOKS | OTHERS | CASES.keys() - {"resume", "retry one"}


@pytest.mark.parametrize("name", CASES)
async def test_an_action_leaves_one_entry(bus: Bus, name: str) -> None:
    case = CASES[name]
    await bus.put_delivery(case.state)
    await case.act(bus.operations.by("api:ops"))
    [entry, *_] = found = await entries(bus)
    assert len(found) == 1 + (case.name.startswith("schedules.") and case.name != "schedules.put")
    said = entry.action
    assert (said.actor, said.name, said.target, said.parameters) == (
        "api:ops",
        case.name,
        case.target,
        case.parameters,
    )
    assert (entry.outcome, entry.touched, entry.detail) == (DONE, case.touched, None)
    assert entry.ended_at is not None
    assert entry.ended_at >= entry.at


@pytest.mark.parametrize(
    "act",
    [
        lambda o: o.retry(DeliveryQuery(), dry_run=True),
        lambda o: o.cancel(DeliveryQuery(), dry_run=True),
        lambda o: o.replay(ReplayQuery(subscription="crm"), dry_run=True),
        lambda o: o.subscriptions.remove("crm", dry_run=True),
        lambda o: o.prune(Retention(delivered=timedelta(0)), dry_run=True),
    ],
    ids=["retry", "cancel", "replay", "remove", "prune"],
)
async def test_a_dry_run_leaves_none(bus: Bus, act: Callable[[Operations], Awaitable[Any]]) -> None:
    await bus.put_delivery(DEAD)
    await act(bus.operations)
    assert await entries(bus) == []


async def test_the_answer_of_a_handler_leaves_none(bus: Bus) -> None:
    await bus.put_delivery(PENDING)
    assert bus.operations.audit.actor == "library"
    assert await bus.operations.ack("o1", "crm")
    assert await entries(bus) == []


async def test_what_is_refused_is_on_record_with_the_reason(bus: Bus) -> None:
    with pytest.raises(NotFound):
        await bus.operations.retry(DeliveryRef("o1", "cmr"))
    [entry] = await entries(bus)
    assert (entry.outcome, entry.touched, entry.detail) == (REFUSED, 0, "no subscription 'cmr'; there are: crm")


async def many(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a retry of two deliveries take two transactions."""
    monkeypatch.setattr(corrections, "_BATCH", 1)
    await bus.put(events, seq=2, id="o2", source="/s", type="order.created", created_at=START)
    await bus.put_delivery(DEAD)
    await bus.put_delivery(DEAD, event_seq=2)


async def test_one_that_is_interrupted_says_how_far_it_came(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await many(bus, monkeypatch)
    begun = asyncio.Event()

    async def retrying() -> None:
        def stop(_: int) -> None:
            begun.set()
            raise asyncio.CancelledError

        await bus.operations.retry(DeliveryQuery(limit=None), advance=stop)

    with pytest.raises(asyncio.CancelledError):
        await retrying()
    [entry] = await entries(bus)
    assert begun.is_set()
    assert (entry.outcome, entry.touched) == (INTERRUPTED, 1)


async def test_one_that_crashes_is_on_record_as_begun(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await many(bus, monkeypatch)
    seen: list[ActionView] = []

    async def look(query: Any, **_: Any) -> int:
        seen.extend(await entries(bus))  # what another process would find, were this one killed now
        return 0

    monkeypatch.setattr(bus.storage.corrections, "retry", look)
    await bus.operations.retry(DeliveryQuery())
    assert [each.outcome for each in seen] == [ActionOutcome.BEGUN]


async def test_an_action_that_cannot_be_recorded_does_not_begin(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: Any) -> int:
        raise StorageUnavailable("away")

    await bus.put(scheduled, event_seq=1, due_at=START)
    monkeypatch.setattr(bus.storage.audit, "begin", away)
    with pytest.raises(StorageUnavailable):
        await bus.operations.cancel_event("o1")
    assert (await bus.operations.records.event("o1")).state == "scheduled"


async def test_an_outcome_that_cannot_be_recorded_changes_no_answer(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: Any) -> None:
        raise StorageUnavailable("away")

    monkeypatch.setattr(bus.storage.audit, "end", away)
    assert await bus.operations.subscriptions.set_paused("crm", True)
    assert [each.outcome for each in await entries(bus)] == [ActionOutcome.BEGUN]


async def test_an_unexpected_error_is_named_and_not_quoted(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> bool:
        raise ValueError("payload")

    monkeypatch.setattr(bus.storage.registry, "set_paused", fail)
    with pytest.raises(ValueError):
        await bus.operations.subscriptions.set_paused("crm", True)
    [entry] = await entries(bus)
    assert (entry.outcome, entry.detail) == (FAILED, "ValueError")


async def test_no_secret_of_this_process_gets_in(bus: Bus) -> None:
    secret = "tok-4711-geheim"
    redaction.know(secret)
    try:
        with pytest.raises(NotFound):
            await bus.operations.retry(DeliveryQuery(subscription=secret, type=f"a.{secret}"))
        with pytest.raises(NotFound):
            await bus.operations.cancel_event(secret)
    finally:
        redaction.forget(secret)
    for entry in await entries(bus):
        assert secret not in repr(entry)
        assert "***" in repr(entry)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("order.*", "order.*"),
        (["order.*", "acme/paid"], ["order.*", "acme/paid"]),
        ("2037-01-01T00:00:00+01:00", "2037-01-01T00:00:00+01:00"),
        (datetime(2037, 1, 1, tzinfo=UTC), "2037-01-01T00:00:00+00:00"),
        (None, None),
        ("https://me:s3cret@crm.example/", "***"),
        ({"webhook": {"secret": "s3cret"}}, "***"),
        (["Bearer s3cret", ["s3cret:x y"], {"s3cret": 1}], ["***", "['***']", "***"]),
        ("cAn4ry24x7kQ2mZ81wPb5Nq", "***"),
        ("x" * 101, "***"),
    ],
)
def test_of_what_nobody_has_checked_plain_words_are_kept(given: object, kept: object) -> None:
    """What stands in the wrong place of a definition may be a secret that nobody knows of yet."""
    assert _told(given) == kept


def test_of_many_words_the_first_are_kept() -> None:
    told = _told([f"t{number}" for number in range(30)])
    assert told is not None
    assert (len(told), told[-1]) == (21, "and 10 more")
