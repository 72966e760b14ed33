from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from runner.strategies.postgres import channel_for


@given(st.text(), st.text())
def test_channel_is_a_name_postgresql_takes_as_it_is(one: str, other: str) -> None:
    one, other = (text.encode("utf-8", "replace").decode() for text in (one, other))
    assert re.fullmatch(r"evb_[0-9a-f]{32}", channel_for(one))
    assert (channel_for(one) == channel_for(other)) is (one == other)


def test_channel_stays_the_same_over_releases() -> None:
    assert channel_for("mesh.prod.events.notify") == "evb_6981edce41dfcc790075eaf5d7eb9000"
