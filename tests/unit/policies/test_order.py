from __future__ import annotations

from datetime import UTC, datetime

import pytest

from runner.event import Event
from runner.policies.order import check_order_by, order_key

EVENT = Event(
    type="order.created",
    source="/shop",
    id="e",
    subject="42",
    time=datetime(2026, 1, 2, tzinfo=UTC),
    extensions={"tenant": "acme", "shard": 42, "empty": "", "vip": True},
)


@pytest.mark.parametrize(
    ("attribute", "key"),
    [
        ("subject", "=42"),
        ("type", "=order.created"),
        ("time", "=2026-01-02T00:00:00Z"),
        ("tenant", "=acme"),
        ("shard", "=42"),
        ("empty", "="),
        ("vip", "=true"),
    ],
)
def test_the_key_is_the_text_of_the_attribute(attribute: str, key: str) -> None:
    assert order_key(attribute, EVENT, 1) == key


def test_without_the_attribute_each_stands_alone() -> None:
    assert order_key("nothing", EVENT, 1) != order_key("nothing", EVENT, 2)
    alone = order_key("nothing", EVENT, 7)
    assert alone != order_key("subject", Event(type="t", source="/s", subject=alone), 8)


def test_a_long_key_fits_into_an_index() -> None:
    one, two = (Event(type="t", source="/s", subject="\U0001f600" * 2047 + end) for end in "ab")
    assert order_key("subject", one, 1) != order_key("subject", two, 2)
    assert order_key("subject", one, 1) == order_key("subject", one, 2)
    assert len(order_key("subject", one, 1).encode()) < 600


@pytest.mark.parametrize("wrong", ["", "data", "specversion", "Subject", "no spaces", "a" * 101, "a\n"])
def test_what_nothing_can_be_ordered_by(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected the name of an attribute"):
        check_order_by(wrong)
