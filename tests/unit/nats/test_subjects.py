from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.nats.subjects import covers, meets, shape


@pytest.mark.parametrize(
    ("template", "tokens"),
    [
        ("orders", ("orders",)),
        ("orders.{id}", ("orders", "*")),
        ("orders.{type}", ("orders", ">")),
        ("{source}.x-{id}", ("*", "*")),
        ("a.{type}.{id}", ("a", ">", "*")),
        ("a.x{type}", ("a", ">")),
    ],
)
def test_shape(template: str, tokens: tuple[str, ...]) -> None:
    assert shape(template) == tokens


@pytest.mark.parametrize(
    ("pattern", "template", "all_of_it", "any_of_it"),
    [
        ("orders", "orders", True, True),
        ("orders", "orders.{id}", False, False),
        ("orders.*", "orders.{id}", True, True),
        ("orders.1", "orders.{id}", False, True),
        ("orders.>", "orders.{type}", True, True),
        ("orders.*", "orders.{type}", False, True),
        ("orders.*.*", "orders.{type}", False, True),
        ("bills.>", "orders.{type}", False, False),
        ("orders.*.new", "orders.{type}.{id}", False, True),
        ("orders.>", "orders", False, False),
        (">", "orders", True, True),
        ("*.*", "{type}", False, True),
        ("a.>", "{type}.{type}.a", False, True),
        ("a.b", "{type}.{type}.{id}", False, False),
    ],
)
def test_patterns(pattern: str, template: str, all_of_it: bool, any_of_it: bool) -> None:
    assert covers(pattern, shape(template)) is all_of_it
    assert meets(pattern, shape(template)) is any_of_it


token = st.sampled_from("ab")
patterns = st.builds(
    lambda tokens, end: ".".join([*tokens, *end]),
    st.lists(st.sampled_from("ab*"), min_size=1, max_size=4),
    st.sampled_from([(), (">",)]),
)
templates = st.lists(st.sampled_from(["a", "b", "{id}", "{type}"]), min_size=1, max_size=4)


def takes(pattern: str, subject: str) -> bool:
    """Say it as a server does, token by token."""
    wanted, given = pattern.split("."), subject.split(".")
    for index, each in enumerate(wanted):
        if each == ">":
            return len(given) > index
        if index >= len(given) or each not in ("*", given[index]):
            return False
    return len(wanted) == len(given)


@given(patterns, templates, st.data())
def test_they_agree_with_every_subject_that_is_made(pattern: str, template: list[str], data: st.DataObject) -> None:
    made = []
    for each in template:
        several = st.lists(token, min_size=1, max_size=3).map(".".join)
        made.append(each if "{" not in each else data.draw(token if each == "{id}" else several))
    subject, tokens = ".".join(made), shape(".".join(template))
    if covers(pattern, tokens):
        assert takes(pattern, subject)
    if takes(pattern, subject):
        assert meets(pattern, tokens)
