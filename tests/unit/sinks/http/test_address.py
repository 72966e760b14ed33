from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.sinks.http.address import Address

PRINTABLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#")


@given(st.text(PRINTABLE), st.none() | st.text(PRINTABLE))
def test_path_and_query_are_sent_as_they_are_written(path: str, query: str | None) -> None:
    written = f"/{path}" + ("" if query is None else f"?{query}")
    assert Address.parse(f"https://h{written}").target == written


@pytest.mark.parametrize(
    "target",
    [
        "/x?sig=a%2Bb%2Fc%3D%3D",
        "/x?sig=a+b/c==",
        "/%7Euser/~user",
        "/a;b=1,2/c",
        "/x?",
        "/x??&&=",
        "//double//slash/",
        "/a/../b/./c",
        "/%2e%2E/%c3%A9/%zz/100%",
        "/x?to=https://elsewhere@host:1/#".rstrip("#"),
        '/<>"{}|\\^`[]',
    ],
)
def test_what_others_would_rewrite(target: str) -> None:
    assert Address.parse(f"http://h.example:8080{target}").target == target


@pytest.mark.parametrize(("url", "target"), [("http://h", "/"), ("http://h?a=1", "/?a=1"), ("http://h/", "/")])
def test_an_empty_path_is_the_root(url: str, target: str) -> None:
    assert Address.parse(url).target == target


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="# "), max_size=20))
def test_what_is_not_ascii_is_percent_encoded_and_nothing_else_is(text: str) -> None:
    expected = "".join(each if each.isascii() else quote(each) for each in text)
    assert Address.parse(f"http://h/{text}").target == f"/{expected}"


@pytest.mark.parametrize(
    ("url", "host", "port", "authority"),
    [
        ("http://crm.example/", "crm.example", 80, "crm.example"),
        ("HTTPS://CRM.example:443/", "CRM.example", 443, "CRM.example"),
        ("https://crm.example:80/", "crm.example", 80, "crm.example:80"),
        ("http://crm_internal:/", "crm_internal", 80, "crm_internal"),
        ("http://[::1]:8080/x", "::1", 8080, "[::1]:8080"),
        ("http://[2001:DB8::1]/x", "2001:DB8::1", 80, "[2001:DB8::1]"),
        ("http://127.0.0.1:65535", "127.0.0.1", 65535, "127.0.0.1:65535"),
    ],
)
def test_host_and_port(url: str, host: str, port: int, authority: str) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.authority) == (host, port, authority)
    assert address.secure is url.lower().startswith("https")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "absolute URL"),
        ("/events", "absolute URL"),
        ("crm.example", "absolute URL"),
        ("ftp://crm.example/", "absolute URL"),
        ("http://", "absolute URL"),
        ("http:///s3cret", "absolute URL"),
        ("http://[::1/", "absolute URL"),
        ("http://[::1::]/", "absolute URL"),
        ("http://h:0/", "absolute URL"),
        ("http://h:65536/", "absolute URL"),
        ("http://h:99999999/", "absolute URL"),
        ("http://h:8o/", "absolute URL"),
        ("http://h%2Ex/", "absolute URL"),
        ("http://good\\.evil/", "absolute URL"),
        ("http://h/a b", "absolute URL"),
        ("http://h/a\r\nX-Evil: 1", "absolute URL"),
        ("http://h/\x7f", "absolute URL"),
        ("http://h/\ud800", "absolute URL"),
        ("http://good\\@evil/", "user or password"),
        ("http://me:s3cret@h/", "user or password"),
        ("http://h/#s3cret", "fragment"),
        ("http://h/" + "s3cret" * 1500, "at most 8000"),
        ("http://büro.example/", "xn--"),
        ("http://\uff11\uff12\uff17.0.0.1/", "xn--"),
    ],
)
def test_what_is_refused_and_not_repeated(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        Address.parse(url)
    assert "s3cret" not in str(refused.value)
