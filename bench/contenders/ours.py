"""This bus, as shipped: a configuration file, `runner.load()`, a `python` sink."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from runner import Event, EventBus, Runner, load
from runner.builder import open_bus
from runner.config import load_config

from .base import Counts, Handler, Place
from .onlooker import Onlooker

__all__ = ["Ours", "deliver", "write_config"]

TYPE = "bench.event"

_handlers: list[Handler] = []  # of this process

# One row for each delivery would be `delivery_states`; this only adds up.
_ROWS = "(SELECT count(*) FROM deliveries WHERE state = 'delivered')"
_DELIVERED = f"""
SELECT {_ROWS} + coalesce(sum(cardinality(r.subscriptions) * (upper(part) - lower(part))), 0)::bigint
FROM runs r CROSS JOIN LATERAL unnest(r.seqs) AS part
"""
_DELIVERED_SQLITE = f"""
SELECT {_ROWS} + coalesce(sum(
    json_array_length(r.subscriptions) * (json_extract(part.value, '$[1]') - json_extract(part.value, '$[0]') + 1)
), 0)
FROM runs r CROSS JOIN json_each(r.seqs) part
"""


async def deliver(event: Event) -> None:
    """Hand the event's data to the benchmark: the sink of every subscription here."""
    for handler in _handlers:
        handler(event.data or b"")


def write_config(place: Place) -> Path:
    """Write the configuration file of the benchmark and return its path."""
    names = [(f"matching-{n}", TYPE) for n in range(place.subscriptions)]
    names += [(f"bystander-{n}", f"other.{n}") for n in range(place.bystanders)]
    document: dict[str, object] = {
        "deployment_id": "bench",
        "storage": {"dsn": place.dsn},
        "strategies": [{"polling": "30s"}, {"nats": place.nats}],
        "sinks": {"measure": {"python": "bench.contenders.ours:deliver"}},
        "subscriptions": [{"name": name, "types": [type], "sink": "measure"} for name, type in names],
        "log": {"level": "warning"},
    }
    if place.dsn.startswith("sqlite"):
        del document["strategies"]  # those that follow from the DSN
    path = Path(place.directory) / "bench.yaml"
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


class Ours:
    """The bus of this repository."""

    def __init__(self, place: Place) -> None:
        self._path = write_config(place)
        self._onlooker = Onlooker(place.dsn)
        self._delivered = _DELIVERED_SQLITE if place.dsn.startswith("sqlite") else _DELIVERED

    async def prepare(self) -> None:
        """Start once, so that the tables and the subscriptions are there."""
        async with load(self._path):
            pass

    @contextlib.asynccontextmanager
    async def session(self, handler: Handler | None = None) -> AsyncIterator[_Session]:
        """Run the whole runner, or only its bus."""
        if handler is None:
            async with open_bus(load_config(self._path)) as bus:
                yield _Session(bus)
        else:
            _handlers.append(handler)
            async with load(self._path) as runner:
                yield _Session(runner)

    async def idle(self) -> bool:
        """Return whether no event is waiting to be dispatched, and no delivery to be settled."""
        return not await self._onlooker.ask(
            "SELECT EXISTS (SELECT 1 FROM dispatch)"
            " OR EXISTS (SELECT 1 FROM deliveries WHERE state IN ('pending', 'leased'))"
        )

    async def counts(self) -> Counts:
        """Count rows."""
        stored = await self._onlooker.ask("SELECT count(*) FROM events")
        return Counts(stored, await self._onlooker.ask(self._delivered))


class _Session:
    def __init__(self, bus: EventBus | Runner) -> None:
        self._bus = bus

    async def publish(self, data: bytes) -> None:
        """Publish one event."""
        await self._bus.publish(Event(type=TYPE, source="/bench", data=data))

    async def publish_many(self, batch: Sequence[bytes]) -> None:
        """Publish them in one transaction."""
        await self._bus.publish_many([Event(type=TYPE, source="/bench", data=data) for data in batch])
