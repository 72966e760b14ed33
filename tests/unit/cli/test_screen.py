"""The screen of `runner top`: it fits, it says what is wrong, and keys do what they say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from rich.cells import cell_len

from runner.cli.screen import SORTS, Opened, View, Wish, lines, press
from runner.delivery import DeliveryState
from runner.diagnosis.status import STATES, Snapshot, Subscribed, judge, unreachable
from runner.policies.breaker import Trip
from runner.storage.contract.overview import Load, Queue, Recent
from runner.storage.contract.records import DeliveryView, InstanceView
from runner.storage.contract.registry import Instance, Registered, StrategyHealth
from runner.storage.contract.throughput import Flow, Throughput
from runner.subscription import Subscription

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
ESCAPE = "\x1b[2Jgone"


def subscribed(name: str, *, dead: int = 0, pending: int = 0, paused: bool = False, error: str = "") -> Subscribed:
    registered = Registered(
        hash(name), Subscription(name=name, sink="s", types=("order.*",)), origin="file", paused=paused
    )
    return Subscribed(
        registered=registered,
        active=True,
        load=Load(dead=dead, pending=pending, oldest_at=NOW - timedelta(hours=3) if pending else None),
        recent=Recent(last_error=error or None, last_success=NOW - timedelta(minutes=1)),
        served=True,
        flow=Flow(delivered=10, dead=dead),
    )


def view_of(*subscriptions: Subscribed) -> View:
    instance = InstanceView(
        Instance("a", "host", 1, "1.0"),
        NOW,
        NOW,
        alive=True,
        running=3,
        strategies=[StrategyHealth("nats", True, ""), StrategyHealth("polling", None, "30s")],
    )
    flows = {each.registered.id: each.flow for each in subscriptions}
    throughput = Throughput(seconds=60.0, flows=flows)
    seen = Snapshot(queue=Queue(now=NOW), instances=[instance], subscriptions=subscriptions, throughput=throughput)
    return View("shop", judge(seen))


def shown(view: View, width: int = 80, height: int | None = 24) -> list[str]:
    made = [line.plain for line in lines(view, width, height)]
    assert all(cell_len(line) <= width for line in made)
    assert height is None or len(made) == height
    return made


def named(view: View, screen: list[str]) -> list[str]:
    return [line.split()[0] for line in screen if line.split()[:1] and line.split()[0] in view.names()]


MANY = [subscribed(f"sub-{number:03}", pending=number % 7, dead=int(number == 250)) for number in range(400)]


def test_a_glance_says_how_the_deployment_is() -> None:
    screen = "\n".join(
        shown(view_of(subscribed("crm", dead=3, pending=5, error="no such customer"), subscribed("audit")))
    )
    assert screen.startswith("degraded  deployment shop  12:00:00Z")
    assert "instances 1 alive, 3 deliveries run  nats hears 1 of 1" in screen
    assert "backlog 5  queue 0  scheduled 0  dead 3" in screen
    assert "crm: 3 dead deliveries; the last error: no such customer" in screen
    assert "out 0.3/s" in screen


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 12), (20, 10), (10, 3), (1, 1)])
@pytest.mark.parametrize("opened", [False, True])
def test_it_fits_any_terminal(width: int, height: int, opened: bool) -> None:
    view = view_of(*MANY, subscribed("n" * 63))
    view.opened = Opened("sub-250") if opened else None
    shown(view, width, height)
    view.asking = Wish("pause", "n" * 63)
    shown(view, width, height)
    view.report = unreachable("PostgreSQL cannot be reached", "start it")
    shown(view, width, height)


def test_the_worst_is_first_and_every_one_can_be_reached() -> None:
    view = view_of(*MANY)
    first = named(view, shown(view))
    assert first[0] == "sub-250"
    met = set(first)
    for _ in range(40):
        assert press(view, "pagedown") is None
        met |= set(named(view, shown(view)))
        assert view.chosen in named(view, shown(view))
    assert len(met) == 400
    press(view, "home")
    assert named(view, shown(view)) == first


def test_every_state_has_a_place() -> None:
    well = subscribed("well")
    since = replace(well.load, pending=1, failing_from=NOW - timedelta(minutes=5))
    states = [
        well,
        subscribed("held", paused=True),
        replace(well, registered=replace(well.registered, breaker=Trip(1, timedelta(seconds=9)))),
        replace(well, registered=replace(well.registered, breaker=Trip(1, timedelta(0)))),
        replace(well, served=False),
        replace(well, load=since, recent=Recent()),
        replace(well, active=False),
        replace(well, registered=replace(well.registered, expires_in=timedelta(0))),
    ]
    assert {each.state for each in states} == set(STATES)
    named = [
        replace(each, registered=replace(each.registered, subscription=Subscription(name=f"s{n}", sink="s")))
        for n, each in enumerate(states)
    ]
    view = view_of(*named)
    view.sort = [name for name, _ in SORTS].index("trouble")
    assert [named[int(name[1:])].state for name in view.names()] == list(STATES)
    assert {each.state for each in named if not each.ill} == {"active", "inactive", "expired"}
    shown(view)


def test_every_order_has_a_name_and_a_way_back() -> None:
    view = view_of(*MANY[:20], subscribed("zzz", pending=9000))
    seen = [view.sort]
    for _ in range(len(SORTS)):
        press(view, "s")
        shown(view)
        seen.append(view.sort)
    assert seen == [*range(len(SORTS)), 0]
    view.sort = [name for name, _ in SORTS].index("waiting")
    assert view.names()[0] == "zzz"
    press(view, "r")
    assert view.names()[-1] == "zzz"
    assert "sort by waiting" in shown(view)[-1]
    press(view, "left")
    assert SORTS[view.sort][0] == "name"


def test_a_pause_is_asked_for_first() -> None:
    view = view_of(subscribed("crm"), subscribed("audit", paused=True))
    shown(view)
    view.chosen = "crm"
    assert press(view, "p") is None
    assert shown(view)[-2] == "pause crm? y/n"
    assert press(view, "n") is None
    assert shown(view)[-2] == "crm stays as it is"
    press(view, "p")
    assert press(view, "y") == Wish("pause", "crm")
    view.chosen = "audit"
    press(view, "p")
    assert press(view, "y") == Wish("resume", "audit")


def test_an_opened_one_shows_its_errors_and_dead_letters() -> None:
    view = view_of(subscribed("crm", dead=1, error=f"refused {ESCAPE}"))
    shown(view)
    assert press(view, "enter") == Wish("open", "crm")
    opened = view.opened
    assert opened is not None
    opened.dead = [
        DeliveryView(7, "crm", "/shop", "id-7", "order.paid", DeliveryState.DEAD, 5, None, f"status 500 {ESCAPE}", NOW)
    ]
    opened.read = True
    screen = "\n".join(shown(view))
    assert "7  order.paid  attempt 5, 0s ago: status 500" in screen
    assert "waiting after an error: none" in screen
    assert "\x1b" not in screen
    assert press(view, "q") is None
    assert press(view, "q") == Wish("quit")


def test_what_is_old_is_called_old() -> None:
    view = view_of(subscribed("crm"))
    view.trouble = "PostgreSQL cannot be reached"
    assert "no answer, what follows is old: PostgreSQL cannot be reached" in shown(view)
    assert "crm" in named(view, shown(view))
    unserved = replace(subscribed("gone"), served=False)
    assert any("nobody serves it" in line for line in shown(view_of(unserved)))
