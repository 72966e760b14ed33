"""The page that publishes a test event, after it has said who gets it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from ..api.endpoints import duration
from ..api.parameters import bad_parameter
from ..diagnosis.prospects import prospects
from ..errors import EventError
from ..event import Event
from ..storage.contract.events import Publication
from .actions import Act, Action, Outcome, Question
from .guard import PUBLISHING
from .view import Page, View

__all__ = ["ACTIONS", "PAGES"]

_DELAY = duration("")
_FIELDS = ("type", "source", "subject", "id", "data", "delay")
_NAMED = 5  # subscriptions


async def _form(view: View) -> Mapping[str, Any]:
    return {}


def _publication(act: Act) -> Publication:
    """Return the event in the fields of a form. Raise an `EventError` or a `Problem`."""
    given = {name: act.form[name].strip() for name in ("subject", "id") if act.form.get(name, "").strip()}
    text = act.form.get("data", "").strip()
    try:
        orjson.loads(text or "null")
    except ValueError as error:
        raise EventError(f"data: no JSON: {error}") from error
    event = Event.new(
        act.form.get("type", "").strip(),
        text.replace("\r\n", "\n").encode() if text else None,
        source=act.form.get("source", "").strip(),
        **({"datacontenttype": "application/json"} if text else {}),
        **given,
    )
    delay = act.form.get("delay", "").strip()
    event = act.view.visitor.caller.admitted(event)
    return Publication(event, _DELAY.read("delay", delay) if delay else None)


async def _ask(act: Act) -> Question:
    if not act.form.get("type", "").strip():
        raise bad_parameter("type", "expected the type of the event, such as order.created")
    publication, surface = _publication(act), act.view.surface
    surface.bus.check([publication])
    known = await surface.storage.records.registered()
    names = [each.subscription for each in prospects(publication.event, known) if each.failing is None]
    who = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    get = f"{len(names)} {'subscription gets' if len(names) == 1 else 'subscriptions get'} it: {who}"
    get = get if names else "No subscription gets it"
    when = f" in {act.form['delay'].strip()}" if act.form.get("delay", "").strip() else ""
    return Question(
        title="Publish this event?",
        text=f"Will publish 1 event of the type {publication.event.type}{when}. {get}.",
        yes="Publish it",
        back="",
    )


async def _publish(act: Act) -> Outcome:
    publication = _publication(act)
    event = publication.event
    said = {"type": event.type, "source": event.source, "delay": publication.delay}
    async with act.operations.audit.action("events.publish", event.id, said) as entry:
        receipt = await act.view.surface.bus.publish(event, delay=publication.delay)
        entry.touched = 0 if receipt.duplicate else 1
    text = "was published before" if receipt.duplicate else "is published"
    return Outcome(f"Event {receipt.seq} {text}.", act.view.url("events", receipt.seq))


PAGES = (Page(path="/publish", template="publish.html", look=_form, query=("type", "source")),)
ACTIONS = (Action(path="/publish", do=_publish, ask=_ask, fields=_FIELDS, scopes=PUBLISHING, again="publish.html"),)
