from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.delivery import DeliveryState
from runner.errors import ConfigError
from runner.event import Event
from runner.storage.contract.claims import ClaimedDelivery
from runner.storage.contract.queue import WorkQueue
from runner.storage.contract.registry import Registered
from runner.storage.contract.settlements import Death, DeliveryRecord
from runner.subscription import Matcher, Subscription
from runner.worker.dead_letters import DeadLetters, dead_letter

ORDERS = Subscription(name="orders", sink="crm", dead_letter="audit", concurrency=3, timeout=timedelta(seconds=5))
AUDIT = Subscription(name="audit", sink="log")
AT = datetime(2026, 5, 4, 12, 30, 1, 250_000, tzinfo=UTC)
DEATH = Death("410 Gone", 7, AT)


class Queue:
    """A store that knows of deaths, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[int, int]]] = []

    async def deaths(self, keys: Sequence[tuple[int, int]]) -> Mapping[tuple[int, int], Death]:
        self.asked.append(list(keys))
        return {key: DEATH for key in keys if key[0] != 3}


def letters() -> Subscription:
    found = ORDERS.for_dead_letters()
    assert found is not None
    return found


def event() -> Event:
    return Event.new("order.created", {"n": 1}, source="/shop", id="1", extensions={"tenant": "eu"})


def record(id: int, state: DeliveryState) -> DeliveryRecord:
    return DeliveryRecord(5, id, state, 1, 99)


def known(queue: Queue) -> DeadLetters:
    """Return what knows that the dead of 1 go to 2, and that 3 has no dead letters."""
    one = DeadLetters(cast("WorkQueue", queue))
    one.learn([Registered(id, each, False, "file") for id, each in ((1, ORDERS), (2, letters()), (3, AUDIT))])
    return one


class TestSubscription:
    def test_it_has_the_sink_and_the_limits_but_its_own_retries(self) -> None:
        found = letters()
        assert (found.name, found.sink, found.dead_letter_of) == ("orders.dead-letter", "audit", "orders")
        assert (found.concurrency, found.timeout) == (3, timedelta(seconds=5))
        assert found.retry == AUDIT.retry
        assert replace(ORDERS, retry=replace(ORDERS.retry, max_attempts=1)).for_dead_letters() == found

    def test_it_has_no_dead_letters_itself_so_that_nothing_goes_round(self) -> None:
        assert letters().for_dead_letters() is None
        assert AUDIT.for_dead_letters() is None

    def test_it_matches_no_event(self) -> None:
        assert Matcher([(letters(), "letters"), (AUDIT, "audit")]).match(event()) == ("audit",)

    def test_it_is_stored_whole(self) -> None:
        for each in (ORDERS, letters()):
            assert Subscription.from_json(each.name, each.to_json()) == each

    def test_its_name_is_nobody_elses(self) -> None:
        with pytest.raises(ConfigError, match=r"'a\.dead-letter'"):
            Subscription(name="a.dead-letter", sink="s")


class TestAddressed:
    def test_a_dead_one_is_given_to_the_subscription_for_it(self) -> None:
        records = [record(id, state) for id in (1, 2, 3) for state in DeliveryState]
        addressed = known(Queue()).addressed(records)
        assert [replace(each, dead_letter=None) for each in addressed] == records
        assert [(each.subscription_id, each.state, each.dead_letter) for each in addressed if each.dead_letter] == [
            (1, DeliveryState.DEAD, 2)
        ]

    def test_without_any_the_records_stay_as_they_are(self) -> None:
        none = DeadLetters(cast("WorkQueue", Queue()))
        none.learn([Registered(1, AUDIT, False, "file")])
        records = [record(1, DeliveryState.DEAD)]
        assert none.addressed(records) is records


class TestTell:
    async def test_of_a_claim_the_store_is_asked_once(self) -> None:
        queue = Queue()
        claimed = [ClaimedDelivery(seq, id, 1, False, event()) for seq in (1, 2, 3) for id in (1, 2, 3)]
        await known(queue).add_reasons(claimed)
        assert queue.asked == [[(1, 1), (2, 1), (3, 1)]]
        for each in claimed:
            if each.subscription_id != 2:
                assert each.event == event()
            else:
                assert each.event == dead_letter(event(), "orders", DEATH if each.seq != 3 else None)

    async def test_without_a_dead_letter_it_is_not_asked(self) -> None:
        queue = Queue()
        await known(queue).add_reasons([ClaimedDelivery(1, 3, 1, False, event())])
        assert queue.asked == []


class TestEvent:
    def test_it_is_the_same_with_how_it_died(self) -> None:
        letter = dead_letter(event(), "orders", replace(DEATH, at=AT.astimezone(timezone(timedelta(0)))))
        assert letter.replace(extensions={"tenant": "eu"}) == event()
        assert letter.extensions == {
            "tenant": "eu",
            "deadlettersub": "orders",
            "deadletterreason": "410 Gone",
            "deadletterattempts": 7,
            "deadletterat": "2026-05-04T12:30:01.250Z",
        }

    def test_what_is_not_dead_any_more_has_no_reason(self) -> None:
        assert dead_letter(event(), "orders", None).extensions == {"tenant": "eu", "deadlettersub": "orders"}

    @given(reason=st.text(max_size=3000), attempts=st.integers(0, 1000))
    def test_whatever_the_reason_it_is_a_valid_event(self, reason: str, attempts: int) -> None:
        dead_letter(event(), "orders", Death(reason, attempts, AT)).validate()

    @pytest.mark.parametrize(
        ("extensions", "told"),
        [
            ({f"x{number}": number for number in range(996)}, 4),
            ({f"x{number}": number for number in range(997)}, 3),
            ({f"x{number}": number for number in range(999)}, 1),
            ({f"x{number}": number for number in range(1000)}, 0),
            ({"a": "x" * 65_536, "b": "x" * 65_400}, 3),  # all but the reason
            ({"a": "x" * 65_536, "b": "x" * 65_500}, 0),
            ({"deadlettersub": "others"} | {f"x{number}": number for number in range(999)}, 1),
        ],
        ids=["996", "997", "999", "1000", "long", "longer", "a dead letter that was published again"],
    )
    def test_at_the_limits_of_an_event_it_is_told_what_there_is_room_for(
        self, extensions: dict[str, int | str], told: int
    ) -> None:
        full = Event.new("order.created", source="/shop", id="1", extensions=extensions)
        letter = dead_letter(full, "orders", Death("x" * 500, 7, AT))
        letter.validate()
        assert {name: letter.extensions[name] for name in extensions if name != "deadlettersub"} == {
            name: value for name, value in extensions.items() if name != "deadlettersub"
        }
        assert len([name for name in letter.extensions if name.startswith("deadletter")]) == told

    def test_one_that_was_recorded_under_other_limits_is_told_all_of_it(self) -> None:
        old = event().replace(extensions={f"x{number}": number for number in range(1100)})
        assert len(dead_letter(old, "orders", DEATH).extensions) == 1104
