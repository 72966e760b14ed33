"""
`python -m bench.pulse`: what counting, scrapes and tracing cost the hot path.

Each round drains and publishes once in each variant, in turns, each in a process and on a database of its own:

- `off`: nothing is counted; the parts that count do nothing.
- `on`: as shipped. Every process counts, whether somebody reads it or not.
- `scraped`: with `api:`, and `/metrics` read five times a second (Prometheus: every 15 s or more).
- `traced`: with `tracing: otel` and a provider whose spans go nowhere; `on` is `tracing` off.

Prints the ratios to `off`, and of `scraped` and `traced` to `on`: the median of the rounds' ratios, and their range.
Those of CPU time say something on a busy machine, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click

from tests.support.server import free_port

from .backlog import drain
from .contenders.base import Contender, Place
from .stage import Stage, Trial

__all__ = ["VARIANTS", "pulse"]

VARIANTS = ("off", "on", "scraped", "traced")
_EVERY = 0.2  # seconds between two scrapes


async def pulse(subject: Contender, place: Place, *, variant: str, events: int) -> dict[str, Any]:
    """Publish a backlog in batches and drain it, in one variant. Rates are per second."""
    async with _varied(Path(place.directory) / "bench.yaml", variant) as seen:
        before = time.process_time()
        measured = await drain(subject, place, events=events)
        busy = time.process_time() - before
    per_cpu = events / busy  # published, drained and, by the scraper, asked for
    return {"drain": measured["rate"], "publish": measured["published"], "events/CPU s": per_cpu, "scrapes": seen[0]}


@contextlib.asynccontextmanager
async def _varied(path: Path, variant: str) -> AsyncIterator[list[int]]:
    """Change the file, or the code, for a variant; yield how many scrapes there have been."""
    seen = [0]
    match variant:
        case "off":
            _count_nothing()
        case "scraped":
            port = free_port()
            _add(path, api={"listen": f"127.0.0.1:{port}"})
            over = Event()
            scraper = Thread(target=_scrape, args=(f"http://127.0.0.1:{port}/metrics", over, seen))
            scraper.start()
            try:
                yield seen
            finally:
                over.set()
                await asyncio.to_thread(scraper.join)
            return
        case "traced":
            _add(path, tracing="otel")
            _record_spans()
        case _:
            pass
    yield seen


def _add(path: Path, **sections: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **sections}))


def _count_nothing() -> None:
    """Take away every count of events, attempts and outcomes."""
    from runner.service.tally import Tally, Tries
    from runner.worker.accounts import Accounts

    def nothing(*_: object, **__: object) -> None:
        return

    for owner, names in {
        Tally: ("add_published",),
        Tries: ("add", "add_quick"),
        Accounts: ("settled", "written", "expect"),
    }.items():
        for name in names:
            setattr(owner, name, nothing)


def _record_spans() -> None:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())


def _scrape(url: str, over: Event, seen: list[int]) -> None:
    while not over.wait(_EVERY):
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
            answer.read()
            seen[0] += 1


@click.command()
@click.option("--rounds", default=7, show_default=True, help="Rounds of every variant.")
@click.option("--events", default=100_000, show_default=True, help="Events that are published and drained in each.")
def main(rounds: int, events: int) -> None:
    """Measure what counting, scrapes and tracing cost."""
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    with Stage() as stage:
        for number in range(rounds):
            order = VARIANTS if number % 2 == 0 else VARIANTS[::-1]
            for variant in order:
                found[variant].append(stage.run(Trial("pulse/runner", "pulse", {"variant": variant, "events": events})))
                rates = {name: round(value) for name, value in found[variant][-1].items()}
                click.echo(f"{variant}: {rates}", err=True)
    for measure in ("drain", "publish", "events/CPU s"):
        for variant, against in (("on", "off"), ("scraped", "on"), ("traced", "on")):
            ratios = [one[measure] / other[measure] for one, other in zip(found[variant], found[against], strict=True)]
            click.echo(f"{measure}: {variant} / {against}  {_spread(ratios)}")
        same = [each[measure] for each in found["off"]]
        click.echo(f"{measure}: off itself  {_spread([each / statistics.median(same) for each in same])}")


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()
