from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from runner.strategies import stack
from runner.strategies.base import Wake
from runner.strategies.stack import StrategyState, compose
from tests.support.eventually import eventually


class Fake:
    """A strategy that remembers what it was told, and does as it is told."""

    def __init__(self, **faults: BaseException | str) -> None:
        self.calls: list[str] = []
        self.wake: Wake | None = None
        self._faults = faults

    async def start(self, wake: Wake) -> None:
        self.wake = wake
        await self._do("start")

    async def notify(self, event_id: str) -> None:
        await self._do("notify")

    async def stop(self) -> None:
        await self._do("stop")

    async def _do(self, action: str) -> None:
        self.calls.append(action)
        match self._faults.get(action):
            case BaseException() as error:
                raise error
            case "hang":
                await asyncio.Event().wait()
            case "cling":
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            case "dawdle":
                await asyncio.sleep(0.4 * stack.NOTIFY_TIMEOUT)


class Push(Fake):
    def __init__(self, hears: bool | Exception, detail: str = "") -> None:
        super().__init__()
        self._hears = hears
        self.detail = detail

    @property
    def hears(self) -> bool:
        if isinstance(self._hears, Exception):
            raise self._hears
        return self._hears


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("START_TIMEOUT", "NOTIFY_TIMEOUT", "STOP_TIMEOUT"):
        monkeypatch.setattr(stack, name, 0.05)


async def test_fans_out_and_passes_every_wake_on() -> None:
    wakes: list[int] = []
    parts = [Fake(), Fake()]
    whole = compose(*parts)
    await whole.start(lambda: wakes.append(1))
    await whole.notify("e")
    await whole.stop()
    assert [part.calls for part in parts] == [["start", "notify", "stop"]] * 2
    for part in parts:
        assert part.wake is not None
        part.wake()
    assert len(wakes) == 2
    assert whole.failures == {}


@pytest.mark.parametrize("fault", [RuntimeError("no"), OSError("no"), "hang"])
@pytest.mark.parametrize("first", [True, False])
async def test_one_that_fails_or_hangs_harms_no_other(fault: BaseException | str, first: bool) -> None:
    bad, good = Fake(start=fault, notify=fault, stop=fault), Fake()
    whole = compose(*((bad, good) if first else (good, bad)))
    began = time.monotonic()
    await whole.start(lambda: None)
    await whole.notify("e")
    await whole.stop()
    assert time.monotonic() - began < 10.0
    assert good.calls == ["start", "notify", "stop"]
    assert whole.failures == {"fake": 3}


async def test_one_that_ignores_its_end_takes_nothing_from_the_next() -> None:
    good = Fake()
    whole = compose(Fake(notify="cling"), good)
    await whole.notify("e")
    assert good.calls == ["notify"]
    assert whole.failures == {}


async def test_each_has_the_whole_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "NOTIFY_TIMEOUT", 3.0)  # a busy machine may take half of it
    whole = compose(*[Fake(notify="dawdle") for _ in range(3)])
    await whole.notify("e")
    assert whole.failures == {}


async def test_cancellation_of_the_publisher_is_not_swallowed() -> None:
    slow = Fake(notify="hang")
    publishing = asyncio.create_task(compose(slow).notify("e"))
    await eventually(lambda: slow.calls)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing


@pytest.mark.parametrize("action", ["start", "notify", "stop"])
@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), SystemExit(1)], ids=repr)
async def test_what_a_strategy_does_to_itself_reaches_nobody_else(action: str, error: BaseException) -> None:
    good = Fake()
    whole = compose(Fake(**{action: error}), good)
    await whole.start(lambda: None)
    await whole.notify("e")
    await whole.stop()
    assert good.calls == ["start", "notify", "stop"]
    assert whole.failures == {"fake": 1}


def test_polling_alone_is_never_deaf() -> None:
    assert not compose(Fake()).deaf
    assert not compose().deaf


@pytest.mark.parametrize(
    ("hears", "deaf"),
    [([True], False), ([False], True), ([False, True], False), ([False, False], True), ([RuntimeError()], True)],
)
def test_deaf_while_no_push_strategy_hears(hears: list[bool | Exception], deaf: bool) -> None:
    assert compose(Fake(), *(Push(each) for each in hears)).deaf is deaf


def test_states_name_each_strategy() -> None:
    whole = compose(Fake(), Push(True, "up"), Push(RuntimeError()))
    assert whole.states() == [
        StrategyState("fake", None, ""),
        StrategyState("push", True, "up"),
        StrategyState("push", False, ""),
    ]
    assert whole.failures == {"push": 1}


class Mute(Push):
    """A push strategy that may have given up its last signal."""

    def __init__(self, unsent: bool) -> None:
        super().__init__(hears=not unsent)
        self.unsent = unsent


@pytest.mark.parametrize(
    ("parts", "unsent"),
    [
        ([Fake()], []),  # the poll was the plan
        ([Fake(), Mute(True)], ["mute"]),
        ([Mute(True), Mute(False)], []),
        ([Mute(True), Push(True)], []),  # somebody's own, which does not tell
    ],
    ids=["polling", "mute", "one of two", "untold"],
)
def test_that_no_signal_went_out_is_known(parts: list[Fake], unsent: list[str]) -> None:
    assert compose(*parts).unsent() == unsent


async def test_a_strategy_that_hangs_holds_up_no_signal_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "NOTIFY_TIMEOUT", 60.0)
    hanging, other = Fake(notify="hang"), Fake()
    signalling = asyncio.create_task(compose(hanging, other).notify("e"))
    await eventually(lambda: other.calls == ["notify"])
    assert not signalling.done()
    signalling.cancel()
    await asyncio.wait({signalling})
