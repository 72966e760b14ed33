from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import EventError
from runner.service.uri import check_references, is_uri, is_uri_reference

# The examples of CloudEvents 1.0 §3.1 and of RFC 3986 §1.1.2, §5.4, and what else producers write.
URIS = (
    "https://github.com/cloudevents",
    "mailto:cncf-wg-serverless@lists.cncf.io",
    "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
    "ldap://[2001:db8::7]/c=GB?objectClass?one",
    "tel:+1-816-555-1212",
    "http://[v1.fe:d]:80/",
    "file:///etc/hosts",
    "http://a.example/%7Eu?q=a/b?c#f/g?h",
    "arn:aws:sns:eu-west-1:123456789012:topic",
    "x:",
)
RELATIVE = (
    "/cloudevents/spec/pull/123",
    "1-555-123-4567",
    "#fragment",
    "?query",
    "//authority/path",
    "../g;x=1/./y",
    "a/b:c",
    "/büro/€",
    "\U0001f600",
)
NEITHER = (
    "my shop",
    "/a b",
    "/%zz",
    "/100%",
    "http://[bad",
    "http://[::1",
    "http://[::g]/",
    "http://a:b:c/",
    "a[1]",
    "1a:b",
    ":b",
    "#a#b",
    "<x>",
    '"x"',
    "{type}",
    "a|b",
    "C:\\temp",
    "a^b",
    "`a`",
)


@pytest.mark.parametrize("text", URIS)
def test_uris(text: str) -> None:
    assert is_uri(text)
    assert is_uri_reference(text)


@pytest.mark.parametrize("text", RELATIVE)
def test_relative_references_are_no_uris(text: str) -> None:
    assert not is_uri(text)
    assert is_uri_reference(text)


@pytest.mark.parametrize("text", NEITHER)
def test_neither(text: str) -> None:
    assert not is_uri(text)
    assert not is_uri_reference(text)


@given(st.text(st.characters(codec="utf-8")))
def test_whatever_is_percent_encoded_is_a_reference(text: str) -> None:
    assert is_uri_reference(f"/{quote(text)}")


@pytest.mark.parametrize(
    ("source", "dataschema", "attribute"),
    [("my shop", None, "source"), ("/s", "/schema", "dataschema"), ("/s", "my schema", "dataschema")],
)
def test_the_error_names_the_attribute(source: str, dataschema: str | None, attribute: str) -> None:
    for _ in range(2):  # a refusal is not remembered as a success
        with pytest.raises(EventError, match=f"^{attribute}: expected a URI") as caught:
            check_references(source, dataschema)
        assert caught.value.attribute == attribute


def test_a_long_one_costs_no_more_than_its_length() -> None:
    # With backtracking these would take hours.
    for text in (
        "%41" * 20_000 + " ",
        "http://" + "a:" * 30_000 + " ",
        "a@" * 30_000 + "[",
        "//" + "a" * 60_000 + "@[",
    ):
        assert not is_uri_reference(text)
