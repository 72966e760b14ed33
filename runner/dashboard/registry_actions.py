"""Actions on subscriptions and schedules: pause, resume, replay, run now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ..api.parameters import moment
from ..operations.holds import Pausing
from ..storage.contract.corrections import ReplayQuery
from .actions import Act, Action, Outcome, Question
from .delivery_actions import deliveries, every, of
from .wording import moment as written

__all__ = ["ACTIONS"]

_FIELDS = ("type", "source", "since", "until", "missing", "rate")


def _name(act: Act) -> str:
    name: str = act.view.path["name"]
    return name


def _subscription(act: Act) -> str:
    return act.view.url("subscriptions", _name(act))


def _schedule(act: Act) -> str:
    return act.view.url("schedules", _name(act))


def _pausing(paused: bool) -> tuple[Callable[[Act], Awaitable[Question]], Callable[[Act], Awaitable[Outcome]]]:
    async def ask(act: Act) -> Question:
        view = await act.view.surface.operations.records.subscription(_name(act))
        waiting = deliveries(view.deliveries.get("pending", 0))
        text = (
            f"Nothing more is delivered to {_name(act)} until it is resumed. {waiting} of it wait now."
            if paused
            else f"Will deliver to {_name(act)} again, and close its breaker. {waiting} of it wait."
        )
        verb = "Pause" if paused else "Resume"
        return Question(title=f"{verb} {_name(act)}?", text=text, yes=f"{verb} it", back=_subscription(act))

    async def do(act: Act) -> Outcome:
        return await _set_paused(act, act.operations.subscriptions, paused, _subscription(act))

    return ask, do


async def _set_paused(act: Act, operations: Pausing, paused: bool, back: str) -> Outcome:
    changed = await operations.set_paused(_name(act), paused, act.view.visitor.name)
    return Outcome(f"{_name(act)} {'is' if changed else 'was already'} {'paused' if paused else 'active'}.", back)


def _replayed(act: Act) -> ReplayQuery:
    given: dict[str, Any] = {name: act.form[name] for name in ("type", "source") if act.form.get(name)}
    given |= {name: moment(name, act.form[name]) for name in ("since", "until") if act.form.get(name)}
    return ReplayQuery(subscription=_name(act), missing=bool(act.form.get("missing")), **given)


async def _ask_replay(act: Act) -> Question:
    number = await act.operations.replay(_replayed(act), every=every(act), dry_run=True)
    events = f"{number:,} {'event' if number == 1 else 'events'}"
    again = "that it has no delivery of" if act.form.get("missing") else "again, also what was delivered,"
    return Question(
        title=f"Replay to {_name(act)}?",
        text=f"Will deliver {events}{of(act)} {again} to {_name(act)}." if number else f"No event{of(act)} fits.",
        yes=f"Replay {events}" if number else None,
        back=_subscription(act),
    )


async def _replay(act: Act) -> Outcome:
    number = await act.operations.replay(_replayed(act), every=every(act))
    return Outcome(
        f"{number:,} {'event is' if number == 1 else 'events are'} due again for {_name(act)}.", _subscription(act)
    )


def _pausing_schedule(
    paused: bool,
) -> tuple[Callable[[Act], Awaitable[Question]], Callable[[Act], Awaitable[Outcome]]]:
    async def ask(act: Act) -> Question:
        view = await act.view.surface.operations.schedules.one(_name(act))
        text = (
            f"Nothing is published for {_name(act)} until it is resumed; what falls into the pause is not caught up. "
            f"Its next time is {written(view.tick)}."
            if paused
            else f"Will publish for {_name(act)} again, at the next of its times from now on."
        )
        verb = "Pause" if paused else "Resume"
        return Question(title=f"{verb} {_name(act)}?", text=text, yes=f"{verb} it", back=_schedule(act))

    async def do(act: Act) -> Outcome:
        return await _set_paused(act, act.operations.schedules, paused, _schedule(act))

    return ask, do


async def _ask_run(act: Act) -> Question:
    view = await act.view.surface.operations.schedules.one(_name(act))
    matcher = await act.view.surface.operations.matcher(())
    event = view.schedule.event_at(act.view.now, "dry-run")
    number = len(list(matcher.match(event)))
    text = (
        f"Will publish 1 event of the type {event.type} now, beside the times of {_name(act)}. "
        f"{number} {'subscription gets' if number == 1 else 'subscriptions get'} it."
    )
    return Question(title=f"Run {_name(act)} now?", text=text, yes="Run it now", back=_schedule(act))


async def _run(act: Act) -> Outcome:
    receipt = await act.operations.schedules.run(_name(act))
    return Outcome(f"{_name(act)} has run: this is its event.", act.view.url("events", receipt.seq))


_PAUSE, _RESUME = _pausing(True), _pausing(False)
_PAUSE_SCHEDULE, _RESUME_SCHEDULE = _pausing_schedule(True), _pausing_schedule(False)

ACTIONS = (
    Action(path="/subscriptions/{name}/pause", ask=_PAUSE[0], do=_PAUSE[1]),
    Action(path="/subscriptions/{name}/resume", ask=_RESUME[0], do=_RESUME[1]),
    Action(path="/subscriptions/{name}/replay", ask=_ask_replay, do=_replay, fields=_FIELDS),
    Action(path="/schedules/{name}/pause", ask=_PAUSE_SCHEDULE[0], do=_PAUSE_SCHEDULE[1]),
    Action(path="/schedules/{name}/resume", ask=_RESUME_SCHEDULE[0], do=_RESUME_SCHEDULE[1]),
    Action(path="/schedules/{name}/run", ask=_ask_run, do=_run),
)
