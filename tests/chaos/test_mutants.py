"""With a guarantee taken away, the case that is there for it fails, and the checker says why."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer

from . import test_hosts as hosts
from . import test_memory as memory
from . import test_nats as nats
from . import test_outcomes as outcomes
from . import test_runs as runs
from . import test_sinks as sinks
from . import test_sqlite as sqlite
from . import test_time as ticks
from . import test_workers as workers
from .trial import Trial, Violation

CAUGHT: dict[str, tuple[str, Callable[[Trial], Awaitable[None]]]] = {
    "never-renew": ("FI-00", partial(workers.control, count=500, patience=10.0)),
    "forget-at-claim": ("FI-01", workers.killed_again_and_again),
    "no-polling": ("FI-02", workers.all_killed_at_once),
    "count-failures": ("FI-03", workers.killed_before_the_settlement),
    "acknowledge-early": ("FI-04", workers.publisher_without_an_answer),
    "acknowledge-unknown": ("FI-04", workers.publisher_without_an_answer),
    "unfenced": ("FI-05", workers.paused),
    "commit-bit-by-bit": ("FI-33", partial(sqlite.writer_killed_in_its_commits, kills=15, count=400)),
    "infer-success": ("FI-58", outcomes.tasks_ended),
    "settle-together": ("FI-59", outcomes.refused_at_the_commit),
    "claim-without-bounds": ("FI-61", partial(memory.heavy_backlog, patience=30.0)),
    "tick-by-own-clock": ("FI-37", partial(ticks.wrong_clocks, seconds=3.0)),
    "tick-from-now": ("FI-37", partial(ticks.killed_while_it_ticks, seconds=12.0, runners=1, kills=1)),
    "tick-unfenced": ("FI-37", partial(ticks.killed_while_it_ticks, seconds=1.0)),
    "run-unfenced": ("FI-66", runs.stopped_before_its_record),
    "run-of-all-between": ("FI-67", partial(runs.two_versions, count=100)),
    "run-wins": ("FI-68", runs.replayed),
    "trust-own-clock": ("FI-36", hosts.wrong_clocks),
    "trust-what-was-said": ("FI-60", sqlite.clock_set_back),
    "trust-the-connection": ("FI-13", nats.silent_with_unsent_bytes),
    "never-deaf": ("FI-16", nats.permission_taken_away),
    "take-a-pong-for-a-yes": ("FI-64", nats.permission_to_send_taken_away),
    "claim-at-every-signal": ("FI-17", nats.flooded),
    "ignore-lame-ducks": ("FI-18", nats.about_to_leave),
    "read-without-limits": ("FI-62", partial(sinks.answers_without_end, events=2)),
    "keep-what-is-unasked": ("FI-63", sinks.stale_answers),
}

SQLITE = ("commit-bit-by-bit", "trust-what-was-said")  # guarantees of that store


@pytest.mark.parametrize(
    "mutant", [pytest.param(name, marks=pytest.mark.chaos(number)) for name, (number, _) in CAUGHT.items()]
)
async def test_a_mutant_is_caught(
    mutant: str, make_trial: Callable[..., Trial], durable_postgres: PostgresServer, tmp_path: Path
) -> None:
    _, case = CAUGHT[mutant]
    place = tmp_path / "runner.db" if mutant in SQLITE else durable_postgres
    with pytest.raises(Violation):
        await case(make_trial(place, mutant=mutant))
