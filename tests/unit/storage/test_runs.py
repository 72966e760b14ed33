from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.storage.contract.claims import UnreadableWork
from runner.storage.contract.settlements import Run, Settled
from runner.storage.runs import block_of, in_runs, stretches


@st.composite
def _settlements(draw: st.DrawFn) -> Settled:
    """Works in any order (those of events that cannot be read come last), and who got each."""
    runs = draw(st.lists(st.builds(Run, st.sampled_from([(), (4,), (2, 3)]), st.integers(1, 3)), max_size=5))
    count = sum(run.length for run in runs)
    seqs = draw(st.lists(st.integers(250, 270), min_size=count, max_size=count, unique=True))
    return Settled(1, [UnreadableWork(seq, 1, seq, None, "") for seq in seqs], runs)


@given(_settlements())
def test_runs_and_rows_hold_each_delivery_once_and_nothing_else(settled: Settled) -> None:
    runs, rows = in_runs(settled)
    in_a_run = [
        (seq, id)
        for run in runs
        for first, last in run.seqs
        for seq in range(first, last + 1)
        for id in run.subscription_ids
    ]
    assert sorted([*in_a_run, *rows]) == sorted((work.seq, id) for work, ids in settled.each() for id in ids)


@given(_settlements())
def test_no_run_leaves_its_block_or_is_small(settled: Settled) -> None:
    for run in in_runs(settled).runs:
        (first, _), (_, last) = run.seqs[0], run.seqs[-1]
        assert block_of(first) == block_of(last) <= first
        assert list(run.seqs) == stretches([seq for a, b in run.seqs for seq in range(a, b + 1)])
        assert sum(b - a + 1 for a, b in run.seqs) * len(run.subscription_ids) >= 4


@given(_settlements(), st.sets(st.integers(250, 270)))
def test_only_what_is_held_is_recorded(settled: Settled, held: set[int]) -> None:
    runs, rows = in_runs(settled, held)
    seqs = {seq for run in runs for a, b in run.seqs for seq in range(a, b + 1)} | {seq for seq, _ in rows}
    assert seqs == {work.seq for work, ids in settled.each() if ids} & held


def test_works_in_a_row_that_went_to_the_same_are_one_run_in_each_block() -> None:
    works = [UnreadableWork(position, 1, position, None, "") for position in [*range(100, 600), 5000, 5001]]
    runs, rows = in_runs(Settled(1, works, [Run((7, 8), 502)]))
    assert [run.seqs for run in runs] == [[(100, 255)], [(256, 511)], [(512, 599)], [(5000, 5001)]]
    assert {tuple(run.subscription_ids) for run in runs} == {(7, 8)}
    assert not rows


def test_what_is_too_little_for_a_run_is_given_row_by_row() -> None:
    works = [UnreadableWork(seq, 1, seq, None, "") for seq in (255, 256, 300)]
    assert in_runs(Settled(1, works, [Run((7,), 3)])) == ([], [(255, 7), (256, 7), (300, 7)])
