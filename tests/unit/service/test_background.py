from __future__ import annotations

import asyncio
from time import monotonic

import pytest
import structlog

from runner.service.background import Background, Errands, spawn
from tests.support.eventually import eventually


class Step:
    """A step that counts its calls, and fails as often as it is told."""

    def __init__(self, *errors: BaseException) -> None:
        self.calls = 0
        self.times: list[float] = []
        self._errors = list(errors)

    async def __call__(self) -> None:
        self.calls += 1
        self.times.append(monotonic())
        await asyncio.sleep(0)
        if self._errors:
            raise self._errors.pop(0)


class Sleeper:
    """A step that sleeps until it is nudged, and says whether it was cancelled."""

    def __init__(self) -> None:
        self.nudged = asyncio.Event()
        self.began = asyncio.Event()
        self.ended = False
        self.cancelled = False

    async def __call__(self) -> None:
        self.began.set()
        try:
            await self.nudged.wait()
            await asyncio.sleep(0)  # the rest of the step
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.ended = True


async def test_the_step_is_run_again_and_again_until_stop() -> None:
    step = Step()
    loop = Background("test", step)
    loop.start()
    await eventually(lambda: step.calls > 10)
    await loop.stop()
    calls = step.calls
    await asyncio.sleep(0)
    assert step.calls == calls


async def test_start_twice_runs_once() -> None:
    sleeper = Sleeper()
    loop = Background("test", sleeper)
    loop.start()
    before = len(asyncio.all_tasks())
    loop.start()
    assert len(asyncio.all_tasks()) == before
    await loop.stop()


async def test_stop_without_start_and_twice() -> None:
    loop = Background("test", Step())
    await loop.stop()
    loop.start()
    await loop.stop()
    await loop.stop()


async def test_it_can_be_started_again() -> None:
    step = Step()
    loop = Background("test", step)
    loop.start()
    await eventually(lambda: step.calls)
    await loop.stop()
    calls = step.calls
    loop.start()
    await eventually(lambda: step.calls > calls)
    await loop.stop()


@pytest.mark.alone
async def test_errors_are_logged_and_waits_double_until_a_success() -> None:
    step = Step(ValueError("a"), ValueError("b"), ValueError("c"))
    loop = Background("test", step, pause=0.5, longest=1.0)
    with structlog.testing.capture_logs() as logs:
        loop.start()
        await eventually(lambda: step.calls > 4)
        await loop.stop()
    assert [(entry["detail"], entry["retry_in"]) for entry in logs] == [("a", 0.5), ("b", 1.0), ("c", 1.0)]
    assert all(entry["loop"] == "test" for entry in logs)
    gaps = [later - earlier for earlier, later in zip(step.times, step.times[1:], strict=False)]
    assert gaps[0] >= 0.49
    assert gaps[1] >= 0.99
    assert gaps[3] < 0.49


async def test_a_step_that_cancels_itself_is_an_error_like_any_other() -> None:
    step = Step(asyncio.CancelledError())
    loop = Background("test", step, pause=0.01)
    loop.start()
    await eventually(lambda: step.calls > 2)
    await loop.stop()


async def test_a_nudged_step_ends_by_itself() -> None:
    sleeper = Sleeper()
    loop = Background("test", sleeper, nudge=sleeper.nudged.set)
    loop.start()
    await sleeper.began.wait()
    await loop.stop()
    assert sleeper.ended
    assert not sleeper.cancelled


async def test_every_waits_before_each_step() -> None:
    step = Step()
    loop = Background("test", step, every=0.02)
    began = monotonic()
    loop.start()
    await eventually(lambda: step.calls == 3)
    await loop.stop()
    assert [at - began >= 0.019 * n for n, at in enumerate(step.times, 1)] == [True] * 3


async def test_after_an_error_the_next_try_does_not_wait_for_every() -> None:
    step = Step(ValueError("a"))
    loop = Background("test", step, every=2.0, pause=0.01)
    with structlog.testing.capture_logs():
        loop.start()
        await eventually(lambda: step.calls == 3)
        await loop.stop()
    after_error, after_success = (later - earlier for earlier, later in zip(step.times, step.times[1:], strict=False))
    assert after_error < 1.5
    assert after_success >= 1.99


async def test_with_every_a_stop_ends_the_wait_and_lets_a_step_finish() -> None:
    step = Step()
    idle = Background("test", step, every=60)
    idle.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await idle.stop()
    assert step.calls == 0
    sleeper = Sleeper()
    loop = Background("test", sleeper, every=0.001)
    loop.start()
    await sleeper.began.wait()
    stopping = asyncio.create_task(loop.stop())
    await asyncio.sleep(0)
    sleeper.nudged.set()
    await stopping
    assert sleeper.ended
    assert not sleeper.cancelled


async def test_a_stop_ends_the_wait_after_an_error() -> None:
    step = Step(*[ValueError("a")] * 9)
    loop = Background("test", step, nudge=lambda: None, pause=60)
    loop.start()
    await eventually(lambda: step.calls == 1)
    async with asyncio.timeout(20):
        await loop.stop()


async def test_without_a_nudge_the_step_is_cancelled_at_once() -> None:
    sleeper = Sleeper()
    loop = Background("test", sleeper)
    loop.start()
    await sleeper.began.wait()
    async with asyncio.timeout(20):
        await loop.stop()
    assert sleeper.cancelled


async def test_a_step_that_ignores_its_nudge_is_cancelled_after_the_timeout() -> None:
    sleeper = Sleeper()
    loop = Background("test", sleeper, nudge=lambda: None)
    loop.start()
    await sleeper.began.wait()
    await loop.stop(timeout=0.05)
    assert sleeper.cancelled


@pytest.mark.timeout(60)
async def test_a_step_that_waits_for_nothing_leaves_room_for_others() -> None:
    calls: list[None] = []

    async def step() -> None:
        calls.append(None)

    loop = Background("test", step)
    loop.start()
    await eventually(lambda: len(calls) > 10)
    await loop.stop()


async def test_a_step_that_hangs_is_told_from_one_that_rests() -> None:
    hang, rested = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        await loop.rest(rested.wait())
        await hang.wait()

    loop = Background("test", step, nudge=hang.set)
    assert loop.stalled == 0.0
    loop.start()
    await asyncio.sleep(0.01)
    assert loop.stalled == 0.0
    rested.set()
    await eventually(lambda: loop.stalled > 0.02)
    await loop.stop()
    assert loop.stalled == 0.0


async def test_a_step_that_fails_again_and_again_makes_no_progress() -> None:
    step = Step(*[ValueError("a")] * 3)
    loop = Background("test", step, every=0.001, pause=0.01)
    loop.start()
    await eventually(lambda: step.calls == 2)
    assert loop.stalled >= 0.01
    await eventually(lambda: loop.stalled == 0.0)
    assert step.calls > 3
    await loop.stop()


@pytest.mark.parametrize(
    "error", [SystemExit(1), GeneratorExit(), asyncio.CancelledError(), BaseException("odd")], ids=repr
)
async def test_whatever_a_step_raises_the_loop_goes_on(error: BaseException) -> None:
    step = Step(error)
    loop = Background("test", step, pause=0.01)
    with structlog.testing.capture_logs() as logs:
        loop.start()
        await eventually(lambda: step.calls > 2)
        await loop.stop()
    assert [(entry["event"], entry["error"]) for entry in logs] == [("loop failed", type(error).__name__)]


async def test_a_text_that_cannot_be_had_ends_no_loop() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    step = Step(Mute())
    loop = Background("test", step, pause=0.01)
    with structlog.testing.capture_logs() as logs:
        loop.start()
        await eventually(lambda: step.calls > 2)
        await loop.stop()
    assert [(entry["event"], entry["error"], entry["detail"]) for entry in logs] == [("loop failed", "Mute", "")]


async def test_a_task_that_was_cancelled_is_stalled_until_it_is_replaced() -> None:
    calls = 0

    async def step() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0.001)

    loop = Background("test", step, longest=1.0)
    with structlog.testing.capture_logs() as logs:
        loop.start()
        await eventually(lambda: loop.stalled > 0.05)
        assert calls == 1
        await eventually(lambda: calls > 2)
        await eventually(lambda: loop.stalled < 0.05)
        await loop.stop()
    assert [entry["event"] for entry in logs] == ["loop ended, starting it again"]


async def test_a_task_that_was_cancelled_is_not_replaced_after_a_stop() -> None:
    sleeper = Sleeper()
    loop = Background("test", sleeper, longest=0.01)
    loop.start()
    await sleeper.began.wait()
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == "test"]
    task.cancel()
    await asyncio.wait({task})
    assert loop.stalled > 0
    await loop.stop()
    sleeper.began.clear()
    await asyncio.sleep(0.05)
    assert not sleeper.began.is_set()
    assert loop.stalled == 0.0


def test_a_program_that_ends_without_a_stop_is_not_held_up_and_reads_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async def program() -> None:
        sleeper = Sleeper()
        Background("test", sleeper, longest=0.01).start()
        await sleeper.began.wait()

    asyncio.run(program())
    assert capfd.readouterr().err == ""


async def test_what_a_task_raises_is_in_the_log() -> None:
    async def fail() -> None:
        raise ValueError("odd")

    with structlog.testing.capture_logs() as logs:
        task = spawn(fail(), "test")
        await asyncio.wait({task})
        await asyncio.sleep(0)
    assert [(entry["event"], entry["task"], entry["error"], entry["detail"]) for entry in logs] == [
        ("task failed", "test", "ValueError", "odd")
    ]


async def test_a_stop_waits_for_errands_and_cancels_one_that_takes_too_long() -> None:
    errands, opened = Errands(), asyncio.Event()
    ended: list[str] = []

    async def wait(name: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await opened.wait()
        finally:
            ended.append(name)

    errands.spawn(wait("short", 60), "short")
    asyncio.get_running_loop().call_later(0.01, opened.set)
    await errands.stop()
    assert ended == ["short"]
    opened.clear()
    errands.spawn(wait("long", 60), "long")
    await errands.stop(timeout=0.01)
    assert ended == ["short", "long"]
    await errands.stop()
