"""One runner or bus, and more than one event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runner import Event, EventBus, Runner, RunnerError, load
from runner.builder import open_bus
from runner.config import load_config

CONFIG = 'deployment_id: test\nstorage: {{dsn: "{dsn}"}}\n'
OTHER_LOOP = "belongs to another event loop"


@pytest.fixture(params=["sqlite", "postgres"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    dsn = request.getfixturevalue("tables_file" if request.param == "sqlite" else "tables_dsn")
    (tmp_path / "runner.yaml").write_text(CONFIG.format(dsn=dsn))
    return tmp_path / "runner.yaml"


def event(id: str) -> Event:
    return Event(type="t", source="/tests", id=id)


async def run(runner: Runner, *ids: str) -> None:
    """Publish from start to stop."""
    async with runner:
        await asyncio.gather(*[runner.publish(event(id)) for id in ids])


def test_a_second_loop_is_refused_by_name_and_another_runner_is_not(path: Path) -> None:
    runner = load(path)
    asyncio.run(run(runner, "a", "b"))
    for attempt in (run(runner, "c"), runner.start(), runner.publish(event("c")), runner.ack("1", "s")):
        with pytest.raises(RunnerError, match=OTHER_LOOP):
            asyncio.run(attempt)
    asyncio.run(run(load(path), "c"))


def test_a_runner_that_was_left_running_is_not_stopped_elsewhere(path: Path) -> None:
    runner = load(path)

    async def leave() -> None:
        await runner.start()

    async def tidy() -> None:
        await runner.stop()

    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(leave())
        with pytest.raises(RunnerError, match=OTHER_LOOP):
            asyncio.run(tidy())
        loop.run_until_complete(tidy())
    finally:
        loop.close()


def test_a_runner_starts_again_in_its_loop(path: Path) -> None:
    runner = load(path)

    async def twice() -> None:
        await run(runner, "a")
        await run(runner, "b")
        with pytest.raises(RunnerError, match="the bus has stopped"):
            await runner.publish(event("c"))

    asyncio.run(twice())


def test_a_bus_that_was_opened_in_a_loop_stays_there(path: Path) -> None:
    kept: list[EventBus] = []

    async def publish() -> None:
        async with open_bus(load_config(path)) as bus:
            await bus.publish(event("a"))
            kept.append(bus)
        with pytest.raises(RunnerError, match="the bus has stopped"):
            await bus.publish(event("b"))

    asyncio.run(publish())
    with pytest.raises(RunnerError, match=OTHER_LOOP):
        asyncio.run(kept[0].publish(event("b")))
