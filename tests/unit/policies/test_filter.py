from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.event import Event
from runner.policies.filter import FilterError, compile_filter

EVENT = Event(
    type="order.created",
    source="/shop/eu",
    id="7",
    time=datetime(2026, 1, 31, 13, 0, tzinfo=timezone(timedelta(hours=1))),
    datacontenttype="application/json",
    extensions={"tier": "gold", "sequence": -5, "sampled": True, "empty": ""},
)


@pytest.mark.parametrize(
    ("spec", "matches"),
    [
        ({"exact": {"type": "order.created"}}, True),
        ({"exact": {"type": "order"}}, False),
        ({"exact": {"type": "order.created", "source": "/shop/us"}}, False),
        ({"prefix": {"source": "/shop/"}}, True),
        ({"prefix": {"source": "shop"}}, False),
        ({"suffix": {"source": "/eu"}}, True),
        ({"suffix": {"source": "/us"}}, False),
        ({"prefix": {"type": "order."}, "suffix": {"type": ".created"}}, True),
        ({"prefix": {"type": "order."}, "suffix": {"type": ".deleted"}}, False),
        ({"all": [{"exact": {"id": "7"}}, {"exact": {"tier": "gold"}}]}, True),
        ({"all": [{"exact": {"id": "7"}}, {"exact": {"tier": "lead"}}]}, False),
        ({"any": [{"exact": {"id": "8"}}, {"exact": {"tier": "gold"}}]}, True),
        ({"any": [{"exact": {"id": "8"}}]}, False),
        ({"not": {"exact": {"id": "8"}}}, True),
        ({"not": {"not": {"exact": {"id": "8"}}}}, False),
        ({"exact": {"sequence": "-5"}}, True),
        ({"exact": {"sampled": "true"}}, True),
        ({"exact": {"sampled": "True"}}, False),
        ({"exact": {"time": "2026-01-31T12:00:00Z"}}, True),
        ({"prefix": {"time": "2026-01"}}, True),
        ({"exact": {"datacontenttype": "application/json"}}, True),
        ({"prefix": {"subject": "e"}}, False),
        ({"not": {"prefix": {"subject": "e"}}}, True),
        ({"suffix": {"unknown": "x"}}, False),
        ({"prefix": {"empty": "x"}}, False),
    ],
)
def test_dialects(spec: dict[str, Any], matches: bool) -> None:
    assert compile_filter(spec)(EVENT) is matches


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "filter: expected a mapping with one of: all, any, exact, not, prefix, suffix"),
        ([], "filter: expected a mapping"),
        ({"exat": {}}, "exat: unknown dialect 'exat', expected one of"),
        ({"exact": {}}, "exact: expected a mapping of attribute to text"),
        ({"exact": "x"}, "exact: expected a mapping"),
        ({"exact": {"id": 7}}, "exact.id: expected a non-empty text; quote it"),
        ({"exact": {"id": ""}}, "exact.id: expected a non-empty text"),
        ({"exact": {"Type": "x"}}, "exact.Type: expected the name of an attribute"),
        ({"prefix": {"data.amount": "1"}}, "prefix.data.amount: expected the name of an attribute"),
        ({"all": []}, "all: expected a non-empty list of filters"),
        ({"any": {"exact": {"id": "1"}}}, "any: expected a non-empty list"),
        ({"any": [{"exact": {"id": "1"}}, {"pre": {}}]}, r"any\[1\].pre: unknown dialect"),
        ({"not": []}, "not: expected a mapping"),
        ({"not": {"all": [{"exact": {"id": 1}}]}}, r"not.all\[0\].exact.id: expected"),
    ],
)
def test_what_does_not_compile_says_where(spec: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        compile_filter(spec)


def test_nesting_has_a_limit() -> None:
    spec: dict[str, Any] = {"exact": {"id": "1"}}
    for _ in range(10_000):
        spec = {"not": spec}
    with pytest.raises(FilterError, match="nested deeper than 16"):
        compile_filter(spec)


leaves = st.builds(
    lambda dialect, value: {dialect: {"id": value}},
    st.sampled_from(["exact", "prefix", "suffix"]),
    st.text("ab", min_size=1),
)
specs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda spec: {"not": spec}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
    ),
    max_leaves=8,
)


@given(specs, st.text("ab", min_size=1))
def test_the_dialects_are_those_of_logic(spec: dict[str, Any], id: str) -> None:
    def holds(spec: dict[str, Any]) -> bool:
        ((dialect, operand),) = spec.items()
        match dialect:
            case "all":
                return all([holds(part) for part in operand])
            case "any":
                return any([holds(part) for part in operand])
            case "not":
                return not holds(operand)
            case "exact":
                return bool(id == operand["id"])
            case "prefix":
                return id.startswith(operand["id"])
            case _:
                return id.endswith(operand["id"])

    assert compile_filter(spec)(Event(type="a", source="/", id=id)) is holds(spec)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["all", "any", "not", "exact", "prefix", "id"]) | st.text(), inner, max_size=3
            )
        ),
    )
)
def test_no_operand_makes_the_compiler_fail_in_another_way(spec: Any) -> None:
    try:
        compile_filter(spec)(EVENT)
    except FilterError:
        return
