from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.delivery import ACCEPTED, Accepted, Deferred, Delivery, DeliveryState, Failed, Outcome, Rejected
from runner.event import Event
from runner.policies.breaker import BreakerPolicy
from runner.policies.rate import Rate
from runner.storage.contract.claims import Claim, UnreadableWork, Work
from runner.storage.contract.settlements import DeliveryRecord, Run, Settled, Turn
from runner.subscription import Matcher
from runner.worker.dispatch import Dispatch
from runner.worker.outlet import Outlet, Slots

from .deliveries import FunctionSink, accept, number, outlet, tick, works

LEASE = timedelta(seconds=30)
TOKEN = 4711


def dispatch_of(claimed: Sequence[Work], *matched: Outlet, crash_limit: int = 3) -> Dispatch:
    """Return a dispatch in which every event matches all of `matched`."""
    closed = {each for each in matched if not each.immediate}
    return Dispatch(Claim(TOKEN, claimed, 1), Fixed(lambda _: matched), closed, crash_limit=crash_limit)


class Fixed(Matcher[Outlet]):
    """Matches as it is told; everybody is concerned by what cannot be read."""

    def __init__(self, match: Callable[[Event], tuple[Outlet, ...]], *everybody: Outlet) -> None:
        super().__init__((each.subscription, each) for each in everybody)
        self._match = match

    def match(self, event: Event) -> tuple[Outlet, ...]:
        return self._match(event)


async def settled_at_once(dispatch: Dispatch) -> Settled:
    dispatch.start()
    await dispatch.wait(5)
    return dispatch.settled(LEASE)


def states(*parts: Settled) -> dict[tuple[int, int], DeliveryState]:
    """Return the state in which every delivery is written, checking that none is written twice."""
    found: dict[tuple[int, int], DeliveryState] = {}
    seqs = [work.seq for settled in parts for work in settled.works]
    assert len(seqs) == len(set(seqs))
    for settled in parts:
        here = {work.seq for work in settled.works}
        for work, ids in settled.each():
            for id in ids:
                assert (work.seq, id) not in found
                found[work.seq, id] = DeliveryState.DELIVERED
        for record in settled.records:
            assert record.seq in here
            assert (record.seq, record.subscription_id) not in found
            found[record.seq, record.subscription_id] = record.state
    return found


def record_of(settled: Settled, seq: int, id: int = 1) -> DeliveryRecord:
    [record] = [each for each in settled.records if (each.seq, each.subscription_id) == (seq, id)]
    return record


async def test_an_event_at_the_end_of_too_long_a_chain_is_dead_and_its_neighbours_are_delivered() -> None:
    sink = FunctionSink(accept)
    claimed = works(5)
    for work, hops in zip(claimed, (None, 3, 4, "4", "x"), strict=True):
        if hops is not None:
            work.event = work.event.replace(extensions={"runnerhops": hops})
    waits = outlet(FunctionSink(accept), id=2, paused=True)
    one = outlet(sink)
    dispatch = Dispatch(Claim(TOKEN, claimed, 1), Fixed(lambda _: (one, waits)), {waits}, crash_limit=3, max_hops=3)
    settled = await settled_at_once(dispatch)
    assert sink.taken == [0, 1, 4]
    found = states(settled)
    assert [found[seq, id] for seq in (2, 3) for id in (1, 2)] == [DeliveryState.DEAD] * 4
    assert [found[seq, 2] for seq in (0, 1, 4)] == [DeliveryState.PENDING] * 3
    record = record_of(settled, 2)
    assert record.error is not None
    assert record.error.startswith("4 events led to this one")
    assert (record.attempts, list(settled.attempts)) == (0, [])


def failing(*outcomes: Outcome) -> FunctionSink:
    """Return a sink that answers each event with the outcome at its number."""

    async def deliver(delivery: Delivery) -> Outcome:
        return outcomes[number(delivery.event)]

    return FunctionSink(deliver)


def hanging(*numbers: int) -> FunctionSink:
    """Return a sink that never answers the events with these numbers."""

    async def deliver(delivery: Delivery) -> Outcome:
        if number(delivery.event) in numbers:
            await asyncio.get_running_loop().create_future()
        return ACCEPTED

    return FunctionSink(deliver)


class TestSettled:
    async def test_successes_are_one_shared_tuple_and_no_rows(self) -> None:
        one, two = outlet(FunctionSink(accept), id=1), outlet(FunctionSink(accept), id=2)
        settled = await settled_at_once(dispatch_of(works(100), one, two))
        assert settled.token == TOKEN
        assert list(settled.runs) == [Run((1, 2), 100)]
        assert not settled.records
        assert not settled.attempts

    async def test_an_event_that_matches_nothing_ends_at_once(self) -> None:
        async with asyncio.timeout(20):
            settled = await settled_at_once(dispatch_of(works(2)))
        assert list(settled.runs) == [Run((), 2)]

    async def test_failures_are_rows_with_their_attempts(self) -> None:
        sink = failing(ACCEPTED, Failed("down", status=503), Rejected("never"))
        settled = await settled_at_once(dispatch_of(works(3), outlet(sink)))
        assert list(settled.runs) == [Run((), 3)]
        assert states(settled) == {
            (0, 1): DeliveryState.DELIVERED,
            (1, 1): DeliveryState.PENDING,
            (2, 1): DeliveryState.DEAD,
        }
        retry = record_of(settled, 1)
        assert (retry.attempts, retry.due_in, retry.error) == (1, timedelta(seconds=1), "down")
        assert [(each.seq, each.error, each.status) for each in settled.attempts] == [
            (1, "down", 503),
            (2, "never", None),
        ]

    async def test_a_failure_on_one_side_leaves_the_others_in_bulk(self) -> None:
        good, bad = outlet(FunctionSink(accept), id=1), outlet(failing(Failed("x"), ACCEPTED), id=2)
        settled = await settled_at_once(dispatch_of(works(2), good, bad))
        assert list(settled.runs) == [Run((1,), 2)]
        assert states(settled)[1, 2] is DeliveryState.DELIVERED

    async def test_the_last_attempt_that_fails_is_dead(self) -> None:
        settled = await settled_at_once(dispatch_of(works(1, attempt=3), outlet(failing(Failed("x")))))
        record = record_of(settled, 0)
        assert (record.state, record.attempts) == (DeliveryState.DEAD, 3)

    async def test_what_runs_is_leased_and_what_has_not_started_is_free(self) -> None:
        one = outlet(hanging(0, 1), concurrency=2)
        dispatch = dispatch_of(works(4), one)
        dispatch.start()
        await tick(5)
        settled = dispatch.settled(LEASE)
        assert states(settled) == {
            (0, 1): DeliveryState.LEASED,
            (1, 1): DeliveryState.LEASED,
            (2, 1): DeliveryState.PENDING,
            (3, 1): DeliveryState.PENDING,
        }
        leased, free = record_of(settled, 0), record_of(settled, 3)
        assert (leased.token, leased.due_in, leased.attempts) == (TOKEN, LEASE, 1)
        assert (free.attempts, free.due_in) == (0, timedelta(0))
        assert dispatch.unfinished() == [(one, dispatch.flights[one])]
        await one.stop()

    async def test_what_is_deferred_is_held_by_nobody(self) -> None:
        one = outlet(failing(ACCEPTED, Deferred(LEASE)))
        dispatch = dispatch_of(works(2), one)
        settled = await settled_at_once(dispatch)
        record = record_of(settled, 1)
        assert (record.state, record.deferred, record.due_in) == (DeliveryState.LEASED, True, LEASE)
        assert one.in_flight(dispatch.flights[one]) == []
        assert not settled.attempts

    async def test_a_closed_outlet_finds_everything_pending(self) -> None:
        paused, absent = outlet(FunctionSink(accept), id=1, paused=True), outlet(None, id=2)
        settled = await settled_at_once(dispatch_of(works(2), paused, outlet(FunctionSink(accept), id=3), absent))
        assert {key for key, state in states(settled).items() if state is DeliveryState.PENDING} == {
            (seq, id) for seq in range(2) for id in (1, 2)
        }
        assert all(record.attempts == 0 for record in settled.records)
        assert list(settled.runs) == [Run((3,), 2)]

    async def test_what_has_an_order_or_a_rate_is_never_started_here(self) -> None:
        sink = FunctionSink(accept)
        ordered, paced = outlet(sink, id=1, order_by="subject"), outlet(sink, id=2, rate=Rate.parse("1/s"))
        claimed = [Work(n + 10, 1, n, Event(type="t", source="/s", id=str(n), subject="a")) for n in range(2)]
        settled = await settled_at_once(dispatch_of(claimed, ordered, paced, outlet(FunctionSink(accept), id=3)))
        assert sink.taken == []
        assert {key for key, state in states(settled).items() if state is DeliveryState.PENDING} == {
            (seq, id) for seq in range(2) for id in (1, 2)
        }
        assert list(settled.turns) == [Turn(0, 1, "=a", 10), Turn(1, 1, "=a", 11)]

    async def test_events_that_are_split_alike_stay_one_run(self) -> None:
        outlets = outlet(FunctionSink(accept), order_by="subject"), outlet(FunctionSink(accept), id=2)
        settled = await settled_at_once(dispatch_of(works(3), *outlets))
        assert list(settled.runs) == [Run((2,), 3)]

    async def test_a_delivery_that_cancels_itself_is_no_success(self) -> None:
        async def deliver(_: Delivery) -> Outcome:
            raise asyncio.CancelledError

        settled = await settled_at_once(dispatch_of(works(3), outlet(FunctionSink(deliver))))
        assert set(states(settled).values()) == {DeliveryState.PENDING}
        assert {record.error for record in settled.records} == {"CancelledError"}

    async def test_what_a_stop_ended_is_pending_and_has_used_an_attempt(self) -> None:
        """Nothing is known of it: it is not delivered because nobody has heard otherwise."""
        one = outlet(hanging(1, 2), concurrency=3)
        dispatch = dispatch_of(works(4), one)
        dispatch.start()
        await tick(5)
        await one.stop()
        settled = dispatch.settled(LEASE)
        pending, delivered = DeliveryState.PENDING, DeliveryState.DELIVERED
        assert states(settled) == {(0, 1): delivered, (1, 1): pending, (2, 1): pending, (3, 1): delivered}
        assert (record_of(settled, 1).attempts, record_of(settled, 1).due_in) == (1, timedelta(0))

    async def test_what_could_not_start_before_its_lease_ended_is_pending(self) -> None:
        sink = FunctionSink(accept)
        one = outlet(sink)
        claim = Claim(TOKEN, works(2), 1)
        late = Dispatch(claim, Fixed(lambda _: (one,)), set(), crash_limit=3, until=monotonic())
        assert set(states(await settled_at_once(late)).values()) == {DeliveryState.PENDING}
        assert sink.taken == []


class TestCrashes:
    async def test_up_to_the_limit_the_whole_event_is_tried_again(self) -> None:
        sink = FunctionSink(accept)
        settled = await settled_at_once(dispatch_of(works(2, attempt=3), outlet(sink)))
        assert sink.taken == [0, 1]
        assert [ids for _, ids in settled.each()] == [(1,), (1,)]

    async def test_beyond_it_each_delivery_waits_alone_under_its_own_counter(self) -> None:
        sinks = [FunctionSink(accept), FunctionSink(accept)]
        several = [outlet(sink, id=id) for id, sink in enumerate(sinks, 1)]
        claimed = [*works(1, attempt=4), *works(2)[1:]]
        settled = await settled_at_once(dispatch_of(claimed, *several))
        assert [sink.taken for sink in sinks] == [[1], [1]]
        assert [(each.seq, each.state, each.attempts) for each in settled.records] == [
            (0, DeliveryState.PENDING, 0),
            (0, DeliveryState.PENDING, 0),
        ]

    async def test_no_delivery_is_dead_of_the_company_it_was_in(self) -> None:
        """Invariant 3: the attempts of an event are not those of each delivery, which may never have started."""
        sink = FunctionSink(accept)
        settled = await settled_at_once(dispatch_of(works(1, attempt=4), outlet(sink), crash_limit=10))
        record = record_of(settled, 0)
        assert (record.state, record.attempts) == (DeliveryState.PENDING, 0)
        assert sink.taken == []
        assert not settled.attempts


class TestWait:
    async def test_it_ends_when_everything_has_landed(self) -> None:
        dispatch = dispatch_of(works(5), outlet(FunctionSink(accept)), outlet(FunctionSink(accept), id=2))
        dispatch.start()
        async with asyncio.timeout(20):
            await dispatch.wait(60)

    async def test_it_ends_after_the_grace(self) -> None:
        one = outlet(hanging(0))
        dispatch = dispatch_of(works(1), one)
        dispatch.start()
        began = monotonic()
        assert not await dispatch.wait(0.05)
        assert 0.04 < monotonic() - began < 20
        await one.stop()

    async def test_it_ends_at_hurry(self) -> None:
        one = outlet(hanging(0))
        dispatch = dispatch_of(works(1), one)
        dispatch.start()
        asyncio.get_running_loop().call_soon(dispatch.hurry)
        async with asyncio.timeout(20):
            assert await dispatch.wait(60)
        assert await dispatch.wait(60)
        await one.stop()


class Doors:
    """A sink whose deliveries each end when they are told to, in the order of their start."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[Outcome]] = []
        self.sink = FunctionSink(self._deliver)

    def _deliver(self, _: Delivery) -> asyncio.Future[Outcome]:
        self._waiting.append(asyncio.get_running_loop().create_future())
        return self._waiting[-1]

    async def end(self, count: int, outcome: Outcome = ACCEPTED) -> None:
        """End so many, one after the other."""
        for _ in range(count):
            self._waiting.pop(0).set_result(outcome)
            await tick(3)


class TestKeepsUp:
    async def test_while_the_rest_will_have_ended_in_time(self) -> None:
        doors = Doors()
        one = outlet(doors.sink, concurrency=2)
        dispatch = dispatch_of(works(10), one)
        dispatch.start()
        await tick(5)
        await doors.end(2)
        assert dispatch.keeps_up(4, 1)  # 2 of 10 have ended, so that the other 8 take four times as long
        await doors.end(2)
        assert not dispatch.keeps_up(2, 1)
        assert not dispatch.keeps_up(9, 1)  # nothing has ended since
        await one.stop()

    async def test_what_waits_before_it_in_the_outlet_counts(self) -> None:
        doors = Doors()
        one = outlet(doors.sink, concurrency=1)
        first, second = dispatch_of(works(4), one), dispatch_of(works(2), one)
        first.start()
        second.start()
        await tick(5)
        await doors.end(2)
        assert second.keeps_up(2, 1)
        await doors.end(1)
        assert not second.keeps_up(1, 1)
        assert first.keeps_up(1, 1)
        await doors.end(3)
        assert not first.keeps_up(9, 1)  # it is over

    async def test_one_that_does_is_waited_for_beside_one_that_does_not(self) -> None:
        doors = Doors()
        quick, stuck = outlet(doors.sink, concurrency=1), outlet(hanging(0), id=2, concurrency=1)
        dispatch = dispatch_of(works(3), quick, stuck)
        dispatch.start()
        await tick(5)
        await doors.end(2)
        assert dispatch.keeps_up(1, 1)
        await doors.end(1)
        assert not dispatch.keeps_up(9, 1)  # what is left is that of the other
        await stuck.stop()

    @pytest.mark.parametrize("options", [{"paused": True}, {"order_by": "subject"}, {"rate": Rate.parse("1/s")}])
    async def test_never_while_others_wait_for_its_records(self, options: dict[str, Any]) -> None:
        doors = Doors()
        one = outlet(doors.sink, concurrency=1)
        dispatch = dispatch_of(works(3), one, outlet(FunctionSink(accept), id=2, **options))
        dispatch.start()
        await tick(5)
        await doors.end(2)
        assert not dispatch.keeps_up(9, 1)
        await one.stop()

    async def test_what_starts_or_is_cut_before_it_is_no_progress(self) -> None:
        one = outlet(hanging(*range(9)), concurrency=2)
        first, second = dispatch_of(works(9), one), dispatch_of(works(9), one)
        first.start()
        second.start()
        await tick(9)
        assert not first.keeps_up(9, 1)
        first.settled(LEASE)
        assert not second.keeps_up(9, 1)
        await one.stop()

    async def test_what_starts_before_it_is_no_progress_either_once_all_has(self) -> None:
        one = outlet(hanging(*range(9)), concurrency=30)
        first, second = dispatch_of(works(9), one), dispatch_of(works(2), one)
        first.start()
        second.start()
        await tick(99)
        assert one.running == 11
        assert not second.keeps_up(9, 1)
        await one.stop()

    @pytest.mark.parametrize("closes", ["paused", "tripped"])
    async def test_never_once_an_outlet_has_closed_that_has_something_left(self, closes: str) -> None:
        doors, theirs = Doors(), Doors()
        one = outlet(doors.sink, concurrency=1, breaker=BreakerPolicy(failures=2, pause=timedelta(hours=1)))
        two = outlet(theirs.sink, id=2, concurrency=1)
        dispatch = dispatch_of(works(9), one, two)
        dispatch.start()
        await tick(5)
        await theirs.end(7)
        assert dispatch.keeps_up(9, 1)
        if closes == "paused":
            one.paused = True
        else:
            await doors.end(2, Failed("down"))
            assert not one.breaker.closed
        await theirs.end(1)
        assert not dispatch.keeps_up(9, 1)
        found = states(dispatch.settled(LEASE))
        assert found[8, 1] is DeliveryState.PENDING
        started = len(doors.sink.taken)
        await doors.end(1 if closes == "paused" else 0)
        assert len(doors.sink.taken) == started
        await one.stop()
        await two.stop()

    async def test_what_closes_with_nothing_left_to_start_delays_nobody(self) -> None:
        doors = Doors()
        one, two = outlet(FunctionSink(accept)), outlet(doors.sink, id=2, concurrency=1)
        dispatch = dispatch_of(works(3), one, two)
        dispatch.start()
        await tick(9)
        await doors.end(2)
        one.paused = True
        assert dispatch.keeps_up(1, 1)
        await two.stop()


class TestFront:
    async def test_it_is_what_has_ended_without_a_gap(self) -> None:
        one = outlet(hanging(3), concurrency=2)
        matched, claim = (one,), Claim(TOKEN, works(6), 1, recorded=(10.0, 15.0))
        dispatch = Dispatch(claim, Fixed(lambda _: matched), set(), crash_limit=3)
        dispatch.start()
        await tick(9)
        front = dispatch.front(LEASE)
        assert front is not None
        assert [work.seq for work in front.works] == [0, 1, 2]
        assert (list(front.runs), front.records, front.recorded) == ([Run((1,), 3)], [], (10.0, 12.0))
        assert (dispatch.held, dispatch.front(LEASE)) == (3, None)
        rest = dispatch.settled(LEASE)
        assert rest.recorded == (13.0, 15.0)
        assert states(front, rest) == {(n, 1): DeliveryState.DELIVERED for n in range(6)} | {
            (3, 1): DeliveryState.LEASED
        }
        await one.stop()

    async def test_failures_in_it_are_written_with_it_and_once(self) -> None:
        doors = Doors()
        one, two = outlet(doors.sink, concurrency=1), outlet(FunctionSink(accept), id=2)
        dispatch = dispatch_of(works(3), one, two)
        dispatch.start()
        await tick(5)
        await doors.end(1, Failed("down"))
        front = dispatch.front(LEASE)
        assert front is not None
        assert states(front) == {(0, 1): DeliveryState.PENDING, (0, 2): DeliveryState.DELIVERED}
        assert [each.seq for each in front.attempts] == [0]
        await doors.end(2)
        rest = dispatch.settled(LEASE)
        assert list(rest.runs) == [Run((1, 2), 2)]
        assert not rest.records
        assert not rest.attempts

    async def test_there_is_none_where_events_match_differently(self) -> None:
        one, two = outlet(FunctionSink(accept)), outlet(hanging(2), id=2)
        match = Fixed(lambda event: (one, two) if number(event) else (one,))
        dispatch = Dispatch(Claim(TOKEN, works(3), 1), match, set(), crash_limit=3)
        dispatch.start()
        await tick(9)
        assert dispatch.front(LEASE) is None
        assert dispatch.held == 3
        await two.stop()


OUTCOMES: list[Outcome] = [ACCEPTED, Accepted(), Failed("no"), Rejected("never")]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_delivery_is_written_exactly_once_as_what_it_was(data: st.DataObject) -> None:
    """Invariant 2: whatever happens, and whenever it is cut, each (event, subscription) that matched is recorded."""
    count, width = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    plan = data.draw(
        st.fixed_dictionaries(
            {(seq, id): st.tuples(st.integers(0, 5), st.integers(0, 3)) for seq in range(count) for id in range(width)}
        )
    )
    matching = data.draw(st.lists(st.sets(st.integers(0, width - 1)), min_size=count, max_size=count))
    attempts = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 3, 4, 5]), min_size=count, max_size=count))
    closed = data.draw(st.sets(st.integers(0, width - 1)))
    ordered = data.draw(st.sets(st.integers(0, width - 1)))
    concurrency, ticks = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 15))
    alike, fronts = data.draw(st.booleans()), data.draw(st.lists(st.integers(0, 5), max_size=3))
    if alike:
        matching = [matching[0]] * count
    finished: dict[tuple[int, int], Outcome] = {}
    started: set[tuple[int, int]] = set()

    def sink(id: int) -> FunctionSink:
        async def deliver(delivery: Delivery) -> Outcome:
            key = (number(delivery.event), id)
            started.add(key)
            delay, outcome = plan[key]
            await tick(delay)
            finished[key] = OUTCOMES[outcome]
            return OUTCOMES[outcome]

        return FunctionSink(deliver)

    def expected(key: tuple[int, int]) -> DeliveryState:
        attempt = attempts[key[0]]
        if key not in started:
            return DeliveryState.PENDING
        match finished.get(key):
            case None:
                return DeliveryState.LEASED
            case Accepted():
                return DeliveryState.DELIVERED
            case Failed() if attempt < 3:
                return DeliveryState.PENDING
            case _:
                return DeliveryState.DEAD

    async def scenario() -> None:
        slots = Slots(6)
        outlets = [
            outlet(
                sink(id),
                id=id,
                slots=slots,
                concurrency=concurrency,
                paused=id in closed,
                order_by="type" if id in ordered else None,
            )
            for id in range(width)
        ]
        claimed = [Work(n, attempts[n], n, Event(type="t", source="/s", id=str(n))) for n in range(count)]

        found: dict[frozenset[int], tuple[Outlet, ...]] = {}

        def match(event: Event) -> tuple[Outlet, ...]:
            ids = matching[number(event)]
            return found.setdefault(frozenset(ids), tuple(outlets[id] for id in sorted(ids)))

        shut = frozenset(each for each in outlets if not each.immediate)
        dispatch = Dispatch(Claim(TOKEN, claimed, 1), Fixed(match), shut, crash_limit=3)
        dispatch.start()
        parts = []
        for pause in fronts:
            await tick(pause)
            if dispatch.keeps_up(10**6, 1) and (front := dispatch.front(LEASE)) is not None:
                parts.append(front)
        await tick(ticks)
        settled = dispatch.settled(LEASE)
        keys = {(seq, id) for seq in range(count) for id in matching[seq]}
        assert states(*parts, settled) == {key: expected(key) for key in keys}
        assert not {key for key in started if key[1] in closed | ordered or attempts[key[0]] > 3}
        assert {(each.seq, each.subscription_id) for each in settled.turns} == {
            key for key in keys if key[1] in ordered
        }
        assert len(settled.turns) == len({(each.key, each.position, each.subscription_id) for each in settled.turns})
        tried = {(each.seq, each.subscription_id) for part in (*parts, settled) for each in part.attempts}
        failures = {key for key in finished if not isinstance(finished[key], Accepted)}
        again = {key for key in finished if isinstance(finished[key], Accepted) and attempts[key[0]] > 1}
        assert failures <= tried <= failures | again
        for each in outlets:
            await each.stop()

    asyncio.run(scenario())


def test_it_cannot_be_made_outside_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        dispatch_of(works(1))


async def test_what_cannot_be_read_is_dead_for_whom_it_may_concern_and_the_rest_is_delivered() -> None:
    one, two = outlet(FunctionSink(accept), id=1), outlet(FunctionSink(accept), id=2)

    def match(event: Event) -> tuple[Outlet, ...]:
        if number(event) == 1:
            raise TypeError("no attribute")
        return (one, two)

    first, broken, last = works(3)
    gone = UnreadableWork(9, 2, 9, None, "no UTF-8")
    claim = Claim(TOKEN, [first, broken, last], 1, unreadable=[gone])
    settled = await settled_at_once(Dispatch(claim, Fixed(match, one, two), frozenset(), crash_limit=3))
    dead, done = DeliveryState.DEAD, DeliveryState.DELIVERED
    expected = {(seq, id): done for seq in (first.seq, last.seq) for id in (1, 2)}
    assert states(settled) == expected | {(seq, id): dead for seq in (broken.seq, 9) for id in (1, 2)}
    assert {(each.seq, each.error, each.attempts) for each in settled.records} == {
        (broken.seq, "the event cannot be read: TypeError: no attribute", 0),
        (9, "the event cannot be read: no UTF-8", 1),
    }
