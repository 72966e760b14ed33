from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from runner.api.access import Need
from runner.api.problems import Problem
from runner.api.tokens import FailureLimit, Tokens
from runner.config.api import TokenEntry
from runner.event import Event

SHOP, OPS = "evb_" + "s" * 43, "evb_" + "o" * 43
EVENT = Event(type="order.created", source="/shop")


def entry(name: str, token: str, **more: Any) -> TokenEntry:
    return TokenEntry.model_validate({"name": name, "secret": token, "scopes": ["publish"]} | more)


def request(*authorization: str, address: str = "192.0.2.1") -> HTTPConnection:
    headers = [(b"authorization", value.encode("latin-1")) for value in authorization]
    return HTTPConnection({"type": "http", "headers": headers, "client": (address, 1)})


def refused(tokens: Tokens, *authorization: str, need: Need = "publish", address: str = "192.0.2.1") -> Problem:
    with pytest.raises(Problem) as caught:
        tokens.admit(request(*authorization, address=address), need)
    for token in (SHOP, OPS):
        assert token not in f"{caught.value} {caught.value.content()} {caught.value.headers}"
    return caught.value


class TestWho:
    def test_each_by_its_token(self) -> None:
        tokens = Tokens([entry("shop", SHOP), entry("ops", OPS)])
        assert tokens.admit(request(f"Bearer {SHOP}"), "publish").name == "shop"
        assert tokens.admit(request(f"bearer   {OPS} "), "publish").name == "ops"

    def test_by_its_hash(self) -> None:
        digest = hashlib.sha256(SHOP.encode()).hexdigest()
        hashed = TokenEntry.model_validate({"name": "shop", "sha256": digest, "scopes": ["publish"]})
        assert Tokens([hashed]).admit(request(f"Bearer {SHOP}"), "publish").name == "shop"
        assert refused(Tokens([hashed]), f"Bearer {digest}").status == 401

    def test_two_of_one_name(self) -> None:
        tokens = Tokens([entry("shop", SHOP), entry("shop", OPS)])
        assert {tokens.admit(request(f"Bearer {each}"), "publish").name for each in (SHOP, OPS)} == {"shop"}

    def test_secrets_of_any_letters(self) -> None:
        odd = "schlüssel-€-" + "x" * 40
        value = b"Bearer " + odd.encode()
        assert Tokens([entry("odd", odd)]).admit(request(value.decode("latin-1")), "publish").name == "odd"

    @pytest.mark.parametrize(
        "authorization",
        [
            (),
            ("",),
            ("Bearer",),
            ("Bearer ",),
            (SHOP,),
            (f"Basic {SHOP}",),
            (f"Bearer {SHOP}x",),
            (f"Bearer {SHOP[:-1]}",),
            (f"Bearer {SHOP.upper()}",),
            (f"Bearer {SHOP}", f"Bearer {SHOP}"),
        ],
    )
    def test_nobody_else(self, authorization: tuple[str, ...]) -> None:
        problem = refused(Tokens([entry("shop", SHOP)]), *authorization)
        assert (problem.status, problem.detail) == (401, "a live bearer token is needed")
        assert problem.headers["www-authenticate"] == 'Bearer realm="runner"'

    def test_until_it_expires(self) -> None:
        now = datetime.now(UTC)
        live = entry("shop", SHOP, expires=(now + timedelta(hours=1)).isoformat())
        over = entry("ops", OPS, expires=(now - timedelta(seconds=1)).isoformat())
        tokens = Tokens([live, over])
        assert tokens.admit(request(f"Bearer {SHOP}"), "publish").name == "shop"
        assert refused(tokens, f"Bearer {OPS}").content() == refused(tokens, "Bearer x").content()


class TestScopes:
    @pytest.mark.parametrize(
        ("scopes", "needs"),
        [
            (["publish"], {"publish"}),
            (["read"], {"read", "events"}),
            (["admin"], {"subscribe", "admin"}),
            (["subscribe"], {"subscribe"}),
            (["read", "admin"], {"read", "events", "subscribe", "admin"}),
        ],
    )
    def test_each_allows_what_it_says(self, scopes: list[str], needs: set[Need]) -> None:
        tokens = Tokens([entry("shop", SHOP, scopes=scopes)])
        every: tuple[Need, ...] = ("publish", "read", "events", "subscribe", "admin")
        for need in every:
            if need in needs:
                assert tokens.admit(request(f"Bearer {SHOP}"), need).name == "shop"
            else:
                problem = refused(tokens, f"Bearer {SHOP}", need=need)
                assert problem.status == 403
                assert 'error="insufficient_scope"' in problem.headers["www-authenticate"]

    @pytest.mark.parametrize("bound", [{"types": ["order.*"]}, {"attributes": {"tenantid": "shop"}}])
    def test_one_that_is_bound_reads_its_events_and_nothing_else(self, bound: dict[str, Any]) -> None:
        tokens = Tokens([entry("shop", SHOP, scopes=["read"], **bound)])
        assert tokens.admit(request(f"Bearer {SHOP}"), "events").name == "shop"
        assert "neither types nor attributes" in refused(tokens, f"Bearer {SHOP}", need="read").detail
        tokens = Tokens([entry("shop", SHOP, scopes=["subscribe"], **bound)])
        assert "neither types nor attributes" in refused(tokens, f"Bearer {SHOP}", need="subscribe").detail


class TestEvents:
    def admitted(self, event: Event, **bound: Any) -> Event:
        return Tokens([entry("shop", SHOP, **bound)]).admit(request(f"Bearer {SHOP}"), "publish").admitted(event)

    def sees(self, event: Event, **bound: Any) -> bool:
        tokens = Tokens([entry("shop", SHOP, scopes=["read"], **bound)])
        return tokens.admit(request(f"Bearer {SHOP}"), "events").sees(event)

    def test_of_every_kind_without_a_bound(self) -> None:
        assert self.admitted(EVENT) is EVENT
        assert self.sees(EVENT)

    def test_of_some_types(self) -> None:
        bound = {"types": ["order.*", "invoice.paid"]}
        for type_ in ("order.created", "invoice.paid"):
            assert self.admitted(EVENT.replace(type=type_), **bound).type == type_
            assert self.sees(EVENT.replace(type=type_), **bound)
        with pytest.raises(Problem) as caught:
            self.admitted(EVENT.replace(type="invoice.sent"), **bound)
        assert (caught.value.status, caught.value.extensions) == (403, {"attribute": "type"})
        assert not self.sees(EVENT.replace(type="invoice.sent"), **bound)

    def test_of_one_tenant(self) -> None:
        bound = {"attributes": {"tenantid": "shop"}}
        own = EVENT.replace(extensions={"tenantid": "shop", "other": 1})
        assert self.admitted(own, **bound) is own
        assert self.sees(own, **bound)
        assert not self.sees(EVENT, **bound)
        with pytest.raises(Problem) as caught:
            self.admitted(EVENT.replace(extensions={"tenantid": "canary"}), **bound)
        assert (caught.value.status, caught.value.extensions) == (403, {"attribute": "tenantid"})
        assert "canary" not in caught.value.detail

    def test_what_an_event_does_not_say_is_filled_in(self) -> None:
        bound = {"attributes": {"tenantid": "shop", "subject": "s", "source": "/shop"}}
        filled = self.admitted(EVENT.replace(extensions={"other": 1}), **bound)
        assert filled == EVENT.replace(extensions={"other": 1, "tenantid": "shop"}, subject="s")

    @pytest.mark.parametrize("source", ["/schedules/nightly", "/schedules/", "/runner/shop"])
    def test_nobody_takes_the_place_of_a_tick_or_speaks_for_the_bus(self, source: str) -> None:
        """Whoever publishes the event of a tick ahead of it keeps the schedule from publishing its own."""
        event = EVENT.replace(source=source, id="nightly/2037-01-01T02:00:00Z")
        for bound in ({}, {"types": ["order.*"]}, {"attributes": {"tenantid": "shop"}}):
            with pytest.raises(Problem) as caught:
                self.admitted(event, **bound)
            assert (caught.value.status, caught.value.extensions) == (403, {"attribute": "source"})
        assert self.admitted(event, scopes=["publish", "admin"]) is event
        assert self.admitted(event, attributes={"source": source}) is event
        assert self.admitted(EVENT.replace(source="/schedules")).source == "/schedules"

    def test_a_number_is_compared_by_its_text(self) -> None:
        event = EVENT.replace(extensions={"tenantid": 7})
        assert self.admitted(event, attributes={"tenantid": "7"}) is event


class TestFailures:
    def test_too_many_of_one_address_have_to_wait_and_others_do_not(self) -> None:
        clock = [0.0]
        tokens = Tokens([entry("shop", SHOP)], failures=FailureLimit(3, 60.0, lambda: clock[0]))
        assert [refused(tokens, "Bearer x").status for _ in range(4)] == [401, 401, 401, 429]
        clock[0] = 10.0
        assert refused(tokens, "Bearer x").headers["retry-after"] == "51"
        assert refused(tokens, "Bearer x", address="192.0.2.2").status == 401
        assert tokens.admit(request(f"Bearer {SHOP}"), "publish").name == "shop"  # who has one is never held up
        clock[0] = 61.0
        assert refused(tokens, "Bearer x").status == 401

    def test_addresses_take_a_bounded_amount_of_memory(self) -> None:
        limit = FailureLimit(3)
        for number in range(10_000):
            limit.failed(f"2001:db8::{number:x}")
        assert len(limit._counts) <= 4096
