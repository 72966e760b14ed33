"""The screen of `runner top`: snapshots become lines of text, keys become requests. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from ..diagnosis.figures import age, latency, number, percent
from ..diagnosis.status import STATES, Report, Snapshot, Subscribed, Verdict
from ..log.redaction import redacted
from ..log.terminal import printable
from ..service.histogram import Histogram
from ..storage.contract.records import DeliveryView

__all__ = ["SORTS", "Opened", "View", "Wish", "lines", "press"]

_STYLES = {Verdict.HEALTHY: "bold green", Verdict.DEGRADED: "bold yellow", Verdict.DOWN: "bold red"}
_KEYS = "↑↓ choose  ⏎ open  s sort by {sort}  r reverse  p pause/resume  q quit"
_OPEN_KEYS = "p pause/resume  q back"
_HEAD = 7  # lines above the first subscription
_FOOT = 2


class Wish(NamedTuple):
    """A request by a key beyond the screen itself, and the subscription it is about."""

    kind: Literal["quit", "look", "open", "pause", "resume"]
    name: str = ""


@dataclass(slots=True)
class Opened:
    """One subscription: its last deliveries that wait after an error, and those that are dead."""

    name: str
    failing: Sequence[DeliveryView] = ()
    dead: Sequence[DeliveryView] = ()
    read: bool = False


@dataclass(slots=True)
class View:
    """
    The state of the screen.

    Attributes:
        chosen: the name of the subscription that keys act on.
        first: how many rows are scrolled past.
        asking: the request that waits for a confirmation.
        message: a line for the one at the keys, until the next key.
        trouble: why the last look failed; empty if it did not.
    """

    deployment: str
    report: Report | None = None
    sort: int = 0
    reverse: bool = False
    chosen: str = ""
    first: int = 0
    opened: Opened | None = None
    asking: Wish | None = None
    message: str = ""
    trouble: str = ""
    rows: int = field(default=10)  # of subscriptions, on the last screen

    @property
    def seen(self) -> Snapshot | None:
        """The snapshot; None while there is none."""
        return None if self.report is None else self.report.snapshot

    def names(self) -> list[str]:
        """Return the subscriptions in the order of the screen."""
        return [] if self.seen is None else [each.name for each in _sorted(self, self.seen)]


class _Column(NamedTuple):
    title: str
    width: int
    cell: Callable[[Subscribed, Snapshot], str]


def _waiting(each: Subscribed, _: Snapshot) -> str:
    return number(each.backlog, exact=each.exact)


def _oldest(each: Subscribed, seen: Snapshot) -> str:
    return age(each.oldest_at, seen.now) if each.oldest_at else ""


def _p95(each: Subscribed, _: Snapshot) -> str:
    return latency(each.flow.latency.quantile(0.95))


def _success(each: Subscribed, _: Snapshot) -> str:
    return percent(each.flow.success_ratio)


def _drain(each: Subscribed, seen: Snapshot) -> str:
    left = seen.drain(each)
    return age(seen.now, seen.now + left) if left else ""


def _failing(each: Subscribed, seen: Snapshot) -> str:
    return age(each.failing_since, seen.now) if each.failing_since else ""


# The first ones are always there; the others as far as there is room, those at the end last.
_COLUMNS = (
    _Column("state", 17, lambda each, _: each.state),
    _Column("waiting", 8, _waiting),
    _Column("oldest", 7, _oldest),
    _Column("dead", 6, lambda each, _: number(each.load.dead)),
    _Column("out/s", 7, lambda each, seen: f"{each.rate(seen.now):.1f}"),
    _Column("p95", 6, _p95),
    _Column("success", 7, _success),
    _Column("drained", 8, _drain),
    _Column("failing", 8, _failing),
)
_NARROWEST = 16  # cells of a name

SORTS: Sequence[tuple[str, Callable[[Subscribed, Snapshot], tuple[float | str, ...]]]] = (
    ("trouble", lambda each, _: (STATES.index(each.state), -each.load.dead, -each.backlog)),
    ("name", lambda each, _: ()),
    ("waiting", lambda each, _: (-each.backlog,)),
    ("oldest", lambda each, seen: (-(seen.now - each.oldest_at).total_seconds() if each.oldest_at else 0.0,)),
    ("dead", lambda each, _: (-each.load.dead,)),
    ("out/s", lambda each, seen: (-each.rate(seen.now),)),
    ("p95", lambda each, _: (-(each.flow.latency.quantile(0.95) or 0.0),)),
)
"""The sort orders: a name and a key function; ties are in the order of names."""


def _sorted(view: View, seen: Snapshot) -> list[Subscribed]:
    _, key = SORTS[view.sort]
    return sorted(seen.subscriptions, key=lambda each: (*key(each, seen), each.name), reverse=view.reverse)


def press(view: View, key: str) -> Wish | None:
    """Change the view by one key; return a request that goes beyond the screen."""
    view.message = ""
    if view.asking is not None:
        wish, view.asking = view.asking, None
        if key in ("y", "Y"):
            return wish
        view.message = f"{wish.name} stays as it is"
        return None
    match key:
        case "q" | "escape" if view.opened is not None:
            view.opened = None
        case "q":
            return Wish("quit")
        case "p" | "P":
            _ask(view)
        case "enter" | "o" if view.opened is None and view.chosen:
            view.opened = Opened(view.chosen)
            return Wish("open", view.chosen)
        case "s" | "right" | "left" if view.opened is None:
            view.sort = (view.sort + (-1 if key == "left" else 1)) % len(SORTS)
            view.first = 0
        case "r" if view.opened is None:
            view.reverse = not view.reverse
        case "up" | "down" | "k" | "j" | "pageup" | "pagedown" | "home" | "end" if view.opened is None:
            _move(view, key)
        case " ":
            return Wish("look")
    return None


def _move(view: View, key: str) -> None:
    names = view.names()
    if not names:
        return
    steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -view.rows, "pagedown": view.rows}
    at = names.index(view.chosen) if view.chosen in names else 0
    at = {"home": 0, "end": len(names) - 1}.get(key, at + steps.get(key, 0))
    view.chosen = names[max(0, min(at, len(names) - 1))]


def _ask(view: View) -> None:
    name = view.opened.name if view.opened is not None else view.chosen
    found = next((each for each in view.seen.subscriptions if each.name == name), None) if view.seen else None
    if found is None:
        return
    if not found.active:
        view.message = f"{name} is in no file any more"
        return
    tripped = found.registered.breaker is not None  # a resume closes the breaker, too
    view.asking = Wish("resume" if found.registered.paused or tripped else "pause", name)


def lines(view: View, width: int, height: int | None) -> list[Text]:
    """
    Return the lines of the screen, none wider than `width`.

    Args:
        height: how many lines there are; None for as many as it takes, without a cursor and without key hints.
    """
    seen = view.seen
    made = [*_head(view, seen, width), Text()]
    if seen is None:
        made += [Text(each) for each in _findings(view)]
    elif view.opened is not None:
        made += _open(view.opened, seen)
    else:
        made += _table(view, seen, width, None if height is None else max(1, height - _HEAD - _FOOT))
    if height is not None:
        made = [*made[: height - _FOOT], *[Text()] * (height - _FOOT - len(made)), *_foot(view)]
    for line in made:
        line.truncate(width, overflow="ellipsis")
    return made if height is None else made[-height:]


def _head(view: View, seen: Snapshot | None, width: int) -> Iterator[Text]:
    report = view.report
    verdict = Verdict.DOWN if report is None else report.verdict
    first = Text.assemble((verdict.name.lower(), _STYLES[verdict]), f"  deployment {view.deployment}")
    if seen is not None:
        first.append(f"  {seen.now:%H:%M:%S}Z", "dim")
    yield first
    if view.trouble:
        yield Text(f"no answer, what follows is old: {_safe(view.trouble)}", "red")
    if seen is None:
        return
    waiting = sum(each.backlog for each in seen.subscriptions)
    dead = sum(each.load.dead for each in seen.subscriptions)
    delivered = sum(each.flow.delivered for each in seen.subscriptions)
    latencies = Histogram.merged(each.flow.latency for each in seen.subscriptions)
    shares = "  ".join(f"p{share} {latency(latencies.quantile(share / 100)) or '-'}" for share in (50, 95, 99))
    oldest = f", oldest {age(seen.queue.oldest_at, seen.now)}" if seen.queue.oldest_at else ""
    out = seen.throughput.rate(delivered)
    yield Text(f"in {seen.rate_in:.1f}/s  out {out:.1f}/s  latency {shares}")
    yield Text(
        f"backlog {number(waiting)}  queue {number(seen.queue.queued)}{oldest}"
        f"  scheduled {number(seen.queue.scheduled)}  dead {number(dead)}"
    )
    yield Text(_processes(seen))
    if not view.trouble:
        yield _worst(view)


def _processes(seen: Snapshot) -> str:
    live = seen.live
    running = sum(each.running or 0 for each in live)
    stuck = sum(each.state == "stuck" for each in live)
    told = [each for instance in live for each in instance.strategies or () if each.hears is not None]
    hears = "  ".join(
        f"{name} hears {sum(each.hears is True for each in told if each.name == name)} of "
        f"{sum(each.name == name for each in told)}"
        for name in dict.fromkeys(each.name for each in told)
    )
    return f"instances {len(live)} alive{f', {stuck} stuck' if stuck else ''}, {running} deliveries run  {hears}"


def _worst(view: View) -> Text:
    """Return the first finding, and how many more there are."""
    bad = [each for each in view.report.findings if each.verdict] if view.report else []
    if not bad:
        return Text("nothing is wrong", "dim")
    more = f" (and {len(bad) - 1} more: runner status)" if len(bad) > 1 else ""
    subject = f"{bad[0].subject}: " if bad[0].subject else ""
    return Text(f"{_safe(subject + bad[0].cause)}{more}", _STYLES[bad[0].verdict])


def _findings(view: View) -> Iterator[str]:
    for each in view.report.findings if view.report else ():
        yield _safe(each.cause)
        yield _safe(f"  cure: {each.cure}")


def _table(view: View, seen: Snapshot, width: int, rows: int | None) -> Iterator[Text]:
    order = _sorted(view, seen)
    names = [each.name for each in order]
    columns, room = _fitting(width, max((cell_len(name) for name in names), default=0))
    if view.chosen not in names:
        view.chosen = names[0] if names else ""
    if rows is not None:
        rows = max(1, rows - 1)  # but for the titles
        at = names.index(view.chosen) if names else 0
        view.rows = rows
        view.first = max(0, min(view.first, at, max(0, len(names) - rows)), at - rows + 1)
    sort, _ = SORTS[view.sort]
    mark = "▲" if view.reverse else "▼"
    title = f"SUBSCRIPTION{mark if sort in ('name', 'trouble') else ''}"
    yield Text(_row(title, [_marked(each.title, sort, mark) for each in columns], columns, room), "bold")
    for each in order if rows is None else order[view.first : view.first + rows]:
        text = Text(_row(_safe(each.name), [each_.cell(each, seen) for each_ in columns], columns, room), _style(each))
        if rows is not None and each.name == view.chosen:
            text.stylize("reverse")
        yield text
    if not names:
        yield Text("no subscriptions yet")


def _marked(title: str, sort: str, mark: str) -> str:
    return title.upper() + (mark if title == sort else "")


def _fitting(width: int, longest: int) -> tuple[Sequence[_Column], int]:
    """Return the columns there is room for, and the cells that are left for the names."""
    columns = list(_COLUMNS)
    least = max(_NARROWEST, min(longest, 22)) + 1
    while len(columns) > 2 and sum(each.width + 1 for each in columns) + least > width:
        columns.pop()
    left = width - sum(each.width + 1 for each in columns)
    return columns, max(_NARROWEST, min(left, max(longest, len("SUBSCRIPTION") + 1)))


def _row(name: str, cells: Sequence[str], columns: Sequence[_Column], room: int) -> str:
    parts = [_cut(name, room)]
    for cell, column in zip(cells, columns, strict=True):
        right = column.title != "state" and cell_len(cell) <= column.width
        parts.append(f"{cell:>{column.width}}" if right else _cut(cell, column.width))
    return " ".join(parts)


def _cut(text: str, size: int) -> str:
    """Return the text in just so many cells."""
    return set_cell_size(text, size) if cell_len(text) <= size else set_cell_size(text, size - 1) + "…"


def _style(each: Subscribed) -> str:
    if not each.active:
        return "dim"
    if each.state in ("nobody serves it", "breaker open", "failing") or each.load.dead:
        return "red"
    return "yellow" if each.state != "active" else ""


def _open(opened: Opened, seen: Snapshot) -> Iterator[Text]:
    found = next((each for each in seen.subscriptions if each.name == opened.name), None)
    if found is None:
        yield Text(f"there is no subscription {_safe(opened.name)} any more")
        return
    subscription, recent = found.registered.subscription, found.recent
    yield Text(f"{_safe(found.name)}  {found.state}", "bold " + _style(found))
    types = ", ".join(subscription.types) or "*"
    yield Text(_safe(f"  {types} -> {subscription.sink}, {subscription.retry.attempts} attempts"))
    succeeded = f"{age(recent.last_success, seen.now)} ago" if recent.last_success else "never, as far as is known"
    drained = f", drained in {_drain(found, seen)}" if _drain(found, seen) else ""
    yield Text(f"  {_waiting(found, seen)} waiting{drained}; last success {succeeded}; {number(found.load.dead)} dead")
    if recent.last_error:
        yield Text(_safe(f"  last error: {recent.last_error}"), "red")
    for title, deliveries in (("dead letters", opened.dead), ("waiting after an error", opened.failing)):
        yield Text()
        if not deliveries:
            yield Text(f"{title}: {'none' if opened.read else '…'}", "dim")
            continue
        yield Text(f"{title}: runner why SEQ {_safe(opened.name)}", "bold")
        for each in deliveries:
            tried = f"attempt {each.attempts}, {age(each.updated_at, seen.now)} ago"
            what = f"  {each.seq}  {each.event_type}  {tried}"
            yield Text(_safe(f"{what}: {each.last_error or ''}"))


def _foot(view: View) -> Iterator[Text]:
    if view.asking is not None:
        yield Text(f"{view.asking.kind} {_safe(view.asking.name)}? y/n", "bold reverse")
    else:
        yield Text(_safe(view.message), "bold")
    keys = _KEYS.format(sort=SORTS[view.sort][0]) if view.opened is None else _OPEN_KEYS
    yield Text(keys, "dim")


def _safe(text: str) -> str:
    return printable(redacted(text))
