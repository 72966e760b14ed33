from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.storage.contract.claims import UnreadableWork
from runner.storage.contract.settlements import Run, Settled
from runner.storage.runs import run_columns


@st.composite
def _settlements(draw: st.DrawFn) -> Settled:
    """Works at positions in any order (those of events that cannot be read come last), and who got each."""
    runs = draw(st.lists(st.builds(Run, st.sampled_from([(), (2, 3)]), st.integers(1, 3)), max_size=5))
    count = sum(run.length for run in runs)
    positions = draw(st.lists(st.integers(1, 20), min_size=count, max_size=count, unique=True))
    return Settled(1, [UnreadableWork(position, 1, position, None, "") for position in positions], runs)


@given(_settlements())
def test_runs_hold_each_work_once_with_its_subscriptions_and_nothing_else(settled: Settled) -> None:
    firsts, lasts, froms, tos, ids = run_columns(settled)
    found = [
        (position, tuple(ids[start - 1 : end]))
        for first, last, start, end in zip(firsts, lasts, froms, tos, strict=True)
        for position in range(first, last + 1)
    ]
    assert sorted(found) == sorted((work.position, ids) for work, ids in settled.each())


def test_works_in_a_row_that_went_to_the_same_are_one_run() -> None:
    works = [UnreadableWork(position, 1, position, None, "") for position in range(100, 600)]
    settled = Settled(1, works, [Run((7, 8), 500)])
    assert run_columns(settled) == ([100], [599], [1], [2], [7, 8])
