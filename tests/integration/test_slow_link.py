"""Events that weigh much, over a link that carries little."""

from __future__ import annotations

import os
from pathlib import Path

from runner import Delivery, Event, load
from runner.builder import open_bus
from runner.config import load_config
from runner.storage.postgres.connector import COMMAND_TIMEOUT
from tests.support.eventually import eventually
from tests.support.proxy import Proxy

MIB = 1 << 20
EVENTS = 24
BANDWIDTH = 2 * MIB  # a second

CONFIG = """\
deployment_id: test
storage: {{dsn: "{dsn}", start_timeout: 20s}}
"""


async def test_large_events_are_delivered_with_the_default_file(tables_dsn: str, tmp_path: Path) -> None:
    """As one answer they would take longer than a statement may, again and again."""
    assert EVENTS * MIB / BANDWIDTH > COMMAND_TIMEOUT
    near = tmp_path / "near.yaml"
    near.write_text(CONFIG.format(dsn=tables_dsn))
    async with open_bus(load_config(near)) as bus:
        for number in range(EVENTS):
            await bus.publish(Event.new("t", os.urandom(MIB), source="/s", id=str(number), datacontenttype="a/b"))
    taken: list[str] = []

    async def take(event: Event, delivery: Delivery) -> None:
        assert event.data is not None
        assert len(event.data) == MIB
        taken.append(event.id)

    async with Proxy(tables_dsn, bandwidth=BANDWIDTH) as proxy:
        far = tmp_path / "far.yaml"
        far.write_text(CONFIG.format(dsn=proxy.url))
        runner = load(far)
        runner.subscribe("take", take, types="*")
        async with runner:
            await proxy.set_mode("narrow")
            await eventually(lambda: len(taken) >= EVENTS, 120)
    assert sorted(taken, key=int) == [str(number) for number in range(EVENTS)]
