"""The example of docs/writing-a-strategy.md, as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from runner.config.dsn import Dsn
from runner.config.plugin import Plugin
from runner.strategies import build_strategy
from runner.strategies.base import StrategyContext
from runner.strategies.polling import PollingOptions
from runner.strategies.stack import StrategyStack, compose
from tests.support.eventually import eventually

GUIDE = Path(__file__).parents[2] / "docs" / "writing-a-strategy.md"


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{GUIDE.name} has no block of {language}"
    return found[1]


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], StrategyStack]]:
    """Build the stack of the guide's YAML, with its module in the working directory."""
    (tmp_path / "my_wakeups.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    polling, shared = yaml.safe_load(block("yaml"))["strategies"]
    assert polling == {"polling": "30s"}
    [(kind, options)] = shared.items()
    assert options.keys() == {"directory"}

    def build(deployment: str) -> StrategyStack:
        context = StrategyContext(
            subject=f"mesh.{deployment}.events.notify",
            dsn=Dsn(scheme="sqlite", path=tmp_path / "bus.db"),
            broker=lambda options: pytest.fail("no NATS here"),
            connector=lambda dsn: pytest.fail("no PostgreSQL here"),
        )
        plugins = [Plugin("polling", PollingOptions()), Plugin(kind, {"directory": str(tmp_path)})]
        return compose(*(build_strategy(plugin, context) for plugin in plugins))

    yield build
    sys.modules.pop("my_wakeups", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


async def test_example_wakes_the_others_of_its_deployment(stack: Callable[[str], StrategyStack]) -> None:
    one, other, stranger = stack("one"), stack("one"), stack("two")
    wakes = {"one": 0, "other": 0, "stranger": 0}

    def counter(name: str) -> Callable[[], None]:
        def wake() -> None:
            wakes[name] += 1

        return wake

    assert one.deaf
    for name, started in (("one", one), ("other", other), ("stranger", stranger)):
        await started.start(counter(name))
    await eventually(lambda: not any((one.deaf, other.deaf, stranger.deaf)))
    assert [(state.name, state.hears, state.detail) for state in other.states()] == [
        ("polling", None, "every 30 s"),
        ("sharedfile", True, "watching"),
    ]
    before = dict(wakes)
    await one.notify("e")
    await eventually(lambda: wakes["other"] > before["other"])
    assert wakes["stranger"] == before["stranger"]
    for started in (one, other, stranger):
        await started.stop()
        await started.stop()
    assert one.deaf
