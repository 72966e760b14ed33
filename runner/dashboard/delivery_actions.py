"""Actions on deliveries and events: retry, cancel."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from ..api.endpoints import rate
from ..api.parameters import bad_parameter, moment
from ..delivery import DeliveryState
from ..errors import StateConflict
from ..operations import CANCELLABLE, RETRYABLE, DeliveryRef
from ..storage.contract.records import DeliveryQuery
from .actions import Act, Action, Outcome, Question
from .wording import visible

__all__ = ["ACTIONS", "deliveries", "every", "of"]

_RATE = rate("")
_TEXTS, _TIMES = ("subscription", "type"), ("since", "until")
_FIELDS = ("state", *_TEXTS, *_TIMES, "rate")


def deliveries(number: int) -> str:
    """Return a number of deliveries in words."""
    return f"{number:,} {'delivery' if number == 1 else 'deliveries'}"


def of(act: Act) -> str:
    """Return the words for what the fields of a form select: ` of crm, of the type order.*`."""
    words = {"subscription": "of", "type": "of the type", "since": "since", "until": "until"}
    said = [f"{word} {act.form[name]}" for name, word in words.items() if act.form.get(name)]
    return f" {', '.join(said)}" if said else ""


def every(act: Act) -> timedelta | None:
    """Return the time between two deliveries, by the field `rate`; None for all at once. Raise a `Problem`."""
    return _RATE.read("rate", act.form["rate"].strip()) if act.form.get("rate") else None


def _which(act: Act) -> DeliveryRef:
    return DeliveryRef(str(act.view.path["seq"]), act.view.path["subscription"])


def _page(act: Act) -> str:
    return act.view.url("deliveries", *_which(act))


async def _ask_retry(act: Act) -> Question:
    which = await _refused(act, RETRYABLE, "retried")
    text = f"Will retry 1 delivery, of event {which.event} to {which.subscription}, with fresh attempts."
    return Question(title="Retry this delivery?", text=text, yes="Retry it", back=_page(act))


async def _ask_cancel(act: Act) -> Question:
    which = await _refused(act, CANCELLABLE, "cancelled")
    text = f"Will cancel 1 delivery, of event {which.event} to {which.subscription}. If it runs, its answer is lost."
    return Question(title="Cancel this delivery?", text=text, yes="Cancel it", back=_page(act), danger=True)


async def _refused(act: Act, fitting: tuple[DeliveryState, ...], done: str) -> DeliveryRef:
    """Return the delivery. Raise `NotFound`, or `StateConflict` if its state does not allow the action."""
    view, _ = await act.view.surface.operations.delivery(_which(act))
    if view.state not in fitting:
        raise StateConflict(f"this delivery is {view.state.value}; only {' or '.join(fitting)} ones can be {done}")
    return _which(act)


async def _retry(act: Act) -> Outcome:
    await act.operations.retry(_which(act))
    event, name = _which(act)
    return Outcome(f"The delivery of event {event} to {name} is due again.", _page(act))


async def _cancel(act: Act) -> Outcome:
    await act.operations.cancel(_which(act))
    event, name = _which(act)
    return Outcome(f"The delivery of event {event} to {name} is cancelled.", _page(act))


def _query(act: Act) -> DeliveryQuery:
    """Return the deliveries that the fields of a form select. Raise a `Problem`."""
    given: dict[str, Any] = {name: act.form[name] for name in _TEXTS if act.form.get(name)}
    given |= {name: moment(name, act.form[name]) for name in _TIMES if act.form.get(name)}
    if state := act.form.get("state"):
        if state not in list(DeliveryState):
            raise bad_parameter("state", f"expected one of: {', '.join(DeliveryState)}")
        given["state"] = DeliveryState(state)
    return DeliveryQuery(**given, limit=None)


def _back(act: Act, page: str) -> str:
    given = {name: act.form[name] for name in (*_TEXTS, *_TIMES) if act.form.get(name)}
    return act.view.url(page, **given)


async def _ask_retry_many(act: Act) -> Question:
    number = await act.operations.retry(_query(act), every=every(act), dry_run=True)
    pace = f", {act.form['rate']}" if act.form.get("rate") else ""
    return Question(
        title="Retry dead letters?",
        text=f"Will retry {deliveries(number)}{of(act)}, with fresh attempts, the oldest first{pace}."
        if number
        else f"There is no dead delivery{of(act)} to retry.",
        yes=f"Retry {deliveries(number)}" if number else None,
        back=_back(act, "dead-letters"),
    )


async def _retry_many(act: Act) -> Outcome:
    number = await act.operations.retry(_query(act), every=every(act))
    return Outcome(
        f"{deliveries(number)}{of(act)} {'is' if number == 1 else 'are'} due again.", _back(act, "dead-letters")
    )


async def _ask_cancel_many(act: Act) -> Question:
    number = await act.operations.cancel(_query(act), dry_run=True)
    return Question(
        title="Cancel what waits?",
        text=f"Will cancel {deliveries(number)}{of(act)} that wait or run."
        if number
        else f"No delivery{of(act)} waits or runs.",
        yes=f"Cancel {deliveries(number)}" if number else None,
        back=_back(act, "deliveries"),
        danger=True,
    )


async def _cancel_many(act: Act) -> Outcome:
    number = await act.operations.cancel(_query(act))
    text = f"{deliveries(number)}{of(act)} {'is' if number == 1 else 'are'} cancelled."
    return Outcome(text, _back(act, "deliveries"))


async def _ask_cancel_event(act: Act) -> Question:
    view = await act.view.surface.operations.records.event(str(act.view.path["seq"]))
    if view.state in ("settled", "cancelled"):
        raise StateConflict(f"event {view.seq} is {view.state}; nothing of it is still to come")
    number = sum(view.deliveries.get(state, 0) for state in CANCELLABLE)
    what = "its dispatch, and " if view.state == "scheduled" or not view.deliveries else ""
    return Question(
        title=f"Cancel event {view.seq}?",
        text=f"Will cancel what is still to come of {visible(view.event.type)}: {what}{deliveries(number)}.",
        yes="Cancel it",
        back=act.view.url("events", view.seq),
        danger=True,
    )


async def _cancel_event(act: Act) -> Outcome:
    view, number = await act.operations.cancel_event(str(act.view.path["seq"]))
    return Outcome(f"Event {view.seq} is cancelled, with {deliveries(number)}.", act.view.url("events", view.seq))


ACTIONS = (
    Action(path="/deliveries/retry", do=_retry_many, ask=_ask_retry_many, fields=_FIELDS),
    Action(path="/deliveries/cancel", do=_cancel_many, ask=_ask_cancel_many, fields=_FIELDS),
    Action(path="/deliveries/{seq:int}/{subscription}/retry", do=_retry, ask=_ask_retry),
    Action(path="/deliveries/{seq:int}/{subscription}/cancel", do=_cancel, ask=_ask_cancel),
    Action(path="/events/{seq:int}/cancel", do=_cancel_event, ask=_ask_cancel_event),
)
