from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runner.storage.postgres.low_water_mark import LowWaterMark

TRAIL, SWEEP = 0.1, 1.0


def test_it_begins_with_a_look_at_everything() -> None:
    assert LowWaterMark().start(100.0) == 0


def test_it_trails_the_newest_claim() -> None:
    mark = LowWaterMark(trail=TRAIL, sweep=SWEEP)
    mark.start(0.0)
    mark.saw(500, 0.0)
    assert mark.start(0.01) == 0  # nothing is that old yet
    mark.saw(1000, 0.01)
    assert mark.start(0.05) == 0
    mark.saw(1500, 0.11)
    assert mark.start(0.12) == 500
    mark.saw(2000, 0.22)
    assert mark.start(0.23) == 1500


def test_every_sweep_looks_at_everything() -> None:
    mark = LowWaterMark(trail=TRAIL, sweep=SWEEP)
    starts = []
    for step in range(40):
        now = step / 10
        starts.append(mark.start(now))
        mark.saw((step + 1) * 100, now)
    assert [step for step, start in enumerate(starts) if start == 0 and step > 1] == [10, 20, 30]


def test_after_a_claim_that_brought_nothing_comes_a_look_at_everything() -> None:
    mark = LowWaterMark(trail=TRAIL, sweep=SWEEP)
    for step in range(8):
        mark.start(step / 10)
        mark.saw(step + 100, step / 10)
    assert mark.start(0.8) > 0
    mark.saw(None, 0.8)
    assert mark.start(0.81) == 0


def test_after_a_claim_that_locked_more_than_it_brought_comes_one_whatever_others_brought_meanwhile() -> None:
    """What it had locked was passed over by the claim beside it, which went further."""
    mark = LowWaterMark(trail=TRAIL, sweep=SWEEP)
    for step in range(8):
        mark.start(step / 10)
        mark.saw(step + 100, step / 10)
    assert mark.start(0.8) > 0
    mark.start(0.8)
    mark.saw(110, 0.8, cut=True)
    mark.saw(200, 0.8)
    assert mark.start(0.81) == 0
    mark.saw(201, 0.81)
    assert mark.start(0.82) > 0


def test_it_says_when_a_sweep_is_worth_it() -> None:
    mark = LowWaterMark(trail=TRAIL, sweep=SWEEP)
    mark.start(5.0)
    assert mark.sweep_in(5.0) is None
    mark.saw(7, 5.0)
    mark.start(5.25)
    assert mark.sweep_in(5.25) == 0.75


@settings(max_examples=300, deadline=None)
@given(
    commits=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), min_size=1, max_size=40),
    gaps=st.lists(st.floats(0.001, 0.6), min_size=1, max_size=60),
    limit=st.integers(1, 10),
)
def test_nothing_is_skipped_for_longer_than_a_sweep(
    commits: list[tuple[float, float]], gaps: list[float], limit: int
) -> None:
    """Rows get their positions in order and appear in any: none may be passed over for longer than `sweep`."""
    begun = sorted(commits)  # the position is given when the transaction begins
    visible = {position: begin + late for position, (begin, late) in enumerate(begun, 1)}
    mark, now, taken = LowWaterMark(trail=TRAIL, sweep=SWEEP), 0.0, set[int]()
    passed_over: dict[int, float] = {}  # since when, by claims that began behind them
    for gap in [*gaps, *[SWEEP] * (len(commits) + 10)]:
        now += gap
        after = mark.start(now)
        due = sorted(position for position, at in visible.items() if at <= now and position not in taken)
        claimed = [position for position in due if position > after][:limit]
        for position in due:
            if position <= after:
                assert now - passed_over.setdefault(position, now) < SWEEP
        taken.update(claimed)
        mark.saw(max(claimed, default=None), now)
        if len(claimed) < limit:
            sweep_in = mark.sweep_in(now)
            assert after == 0 if sweep_in is None else 0 <= sweep_in <= SWEEP
    assert taken == set(visible)


def test_a_late_transaction_larger_than_a_claim_does_not_wait_for_a_sweep_each_time() -> None:
    mark, late, newest, now = LowWaterMark(trail=TRAIL, sweep=SWEEP), set(range(1, 31)), 1000, 0.0
    claims = 0
    while late:
        now += 0.01
        after = mark.start(now)
        newest += 10  # there is always more of the new
        visible = sorted(late) if now > 0.5 else []
        claimed = [position for position in (*visible, newest) if position > after][:10]
        late -= set(claimed)
        mark.saw(max(claimed), now)
        claims += now > SWEEP
    assert now < 1.1
    assert claims <= 4
