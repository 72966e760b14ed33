from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runner.delivery import Delivery
from runner.errors import EventError
from runner.event import Event
from runner.sinks.nats import NatsSinkOptions, Subject, message_id

TEMPLATE = "orders.{type}.{source}.{subject}.{id}"


@pytest.mark.parametrize(
    ("template", "event", "subject"),
    [
        ("orders", Event(type="a", source="/"), "orders"),
        ("orders.{type}", Event(type="order.created", source="/"), "orders.order.created"),
        ("{deployment_id}.{type}", Event(type="a", source="/"), "prod.a"),
        ("{source}.x", Event(type="a", source="https://shop.example/eu"), "https_3a_2f_2fshop_2eexample_2feu.x"),
        ("a-{id}-b", Event(type="a", source="/", id="1 2"), "a-1_202-b"),
        ("x.{subject}", Event(type="a", source="/"), "x._"),
        ("x.{type}", Event(type=".a..b.", source="/"), "x._.a._.b._"),
        ("x.{type}", Event(type="*.>", source="/"), "x._2a._3e"),
        ("x.{id}", Event(type="a", source="/", id="é"), "x._c3_a9"),
        ("x.{subject}", Event(type="a", source="/", subject="{type}"), "x._7btype_7d"),
    ],
)
def test_subjects(template: str, event: Event, subject: str) -> None:
    assert Subject(template, "prod").of(event) == subject


attribute = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@given(attribute, attribute, attribute, attribute)
def test_no_attribute_changes_the_structure(type: str, source: str, subject: str, id: str) -> None:
    made = Subject(TEMPLATE, "prod").of(Event(type=type, source=source, subject=subject, id=id))
    tokens = made.split(".")
    assert len(tokens) == 5 + type.count(".")
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", token) for token in tokens)
    assert tokens[0] == "orders"


@pytest.mark.parametrize("type", ["mesh.prod.events.notify", "_INBOX.x.1"])
def test_an_event_cannot_reach_a_reserved_subject(type: str) -> None:
    with pytest.raises(EventError, match="reserved"):
        Subject("{type}", "prod").of(Event(type=type, source="/"))


def test_a_subject_the_server_would_close_the_connection_over_is_refused() -> None:
    with pytest.raises(EventError, match="at most 2048"):
        Subject("x.{id}", "prod").of(Event(type="a", source="/", id="é" * 2000))


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("orders.{kind}", "unknown placeholder 'kind', expected one of: deployment_id, id, source, subject, type"),
        ("orders.{event.data}", "unknown placeholder"),
        ("orders.{}", "unknown placeholder"),
        ("", "between single dots"),
        ("orders..{type}", "between single dots"),
        (".orders", "between single dots"),
        ("orders.", "between single dots"),
        ("orders.*", "between single dots"),
        ("orders.>", "between single dots"),
        ("orders created", "between single dots"),
        ("orders\r\nPUB x", "between single dots"),
        ("orders.{type", "between single dots"),
        ("$JS.API.{type}", "between single dots"),
        ("_INBOX.{type}", "reserved"),
        ("mesh.{type}", "reserved"),
    ],
)
def test_malformed_templates_are_refused(template: str, named: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(named)):
        NatsSinkOptions.model_validate({"subject": template})


@given(*[st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=300)] * 6)
def test_a_stream_takes_no_delivery_for_another(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    one, other = Delivery(Event(type="t", id=a, source=b), c, 1), Delivery(Event(type="t", id=d, source=e), f, 2)
    assert (message_id(one) == message_id(other)) is ((a, b, c) == (d, e, f))
    assert message_id(one) == message_id(Delivery(one.event, c, 9))
    assert re.fullmatch(r"[!-~]{1,256}", message_id(one))
