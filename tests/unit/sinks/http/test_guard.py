"""The policy on destinations, against every form in which a private address can be written or wrapped."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.sinks.http.address import Address
from runner.sinks.http.guard import ANYWHERE, PUBLIC, Guard, is_public

STRICT = Guard()


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.255",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "::ffff:127.0.0.1",  # IPv4-mapped
        "::ffff:a9fe:a9fe",
        "::ffff:0:127.0.0.1",  # IPv4-translated
        "64:ff9b::7f00:1",  # NAT64
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::a00:1",
        "100::1",  # discard-only
        "2001::1",  # Teredo
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4
        "2002:808:808::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "not an address",
    ],
)
def test_what_is_not_public(address: str) -> None:
    assert not is_public(address)
    assert STRICT.address_fault("crm.example.com", address) is not None
    assert PUBLIC.address_fault("crm.example.com", address) is not None
    assert ANYWHERE.address_fault("crm.example.com", address) is None


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.0", "172.32.0.1", "192.0.1.1", "223.255.255.255"]
)
def test_what_is_public(address: str) -> None:
    for form in (address, f"::ffff:{address}"):
        assert is_public(form)
        assert STRICT.address_fault("crm.example.com", form) is None


@pytest.mark.parametrize("address", ["2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450:4001::1"])
def test_what_is_public_of_ipv6(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses())
def test_nothing_is_public_that_python_calls_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if (
        address.is_private
        or address.is_multicast
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
    ):
        mapped = getattr(address, "ipv4_mapped", None)
        assert not is_public(str(address)) or (mapped is not None and is_public(str(mapped)))


@given(st.ip_addresses(v=4))
def test_a_mapped_address_is_what_it_maps(address: ipaddress.IPv4Address) -> None:
    assert is_public(f"::ffff:{address}") == is_public(str(address))


@given(st.ip_addresses(v=4))
def test_no_wrapper_makes_an_address_public(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    wrapped = (number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80, 0x20010000 << 96 | number)
    assert not any(is_public(str(ipaddress.IPv6Address(each))) for each in wrapped)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("http://crm.example.com/", "only https://"),
        ("https://127.0.0.1/", "not a public address"),
        ("https://[::1]/", "not a public address"),
        ("https://[::ffff:10.0.0.1]/", "not a public address"),
        ("https://127.1/", "another form"),
        ("https://2130706433/", "another form"),
        ("https://0x7f.1/", "another form"),
        ("https://0x7f000001/", "another form"),
        ("https://0177.0.0.1/", "another form"),
        ("https://127.0.0.1./", "another form"),
        ("https://1.2.3.4.5/", "another form"),
    ],
)
def test_a_url_that_is_refused_before_any_look_up(url: str, fault: str) -> None:
    found = STRICT.url_fault(Address.parse(url))
    assert found is not None
    assert fault in found
    assert ANYWHERE.url_fault(Address.parse(url)) is None


@pytest.mark.parametrize(
    "url", ["https://crm.example.com/", "https://8.8.8.8:9000/", "https://[2606:4700::1]/", "https://a1/"]
)
def test_a_url_that_may_be_looked_up(url: str) -> None:
    assert STRICT.url_fault(Address.parse(url)) is None


def test_ports_of_destinations_that_others_set() -> None:
    assert PUBLIC.url_fault(Address.parse("https://crm.example.com:22/")) is not None
    assert PUBLIC.url_fault(Address.parse("https://crm.example.com:8443/")) is None


def test_networks_and_names_that_are_allowed() -> None:
    guard = Guard(
        cidrs=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")),
        hosts=("*.internal", "crm"),
        http=True,
    )
    for host, address, allowed in [
        ("x", "10.1.2.3", True),
        ("x", "10.2.0.1", False),
        ("x", "::ffff:10.1.2.3", True),
        ("x", "fd00::1", True),
        ("x", "8.8.8.8", True),
        ("crm", "127.0.0.1", True),
        ("CRM.", "127.0.0.1", True),
        ("crm.evil", "127.0.0.1", False),
        ("a.b.internal", "192.168.1.1", True),
        ("internal", "192.168.1.1", False),
        ("evilinternal", "192.168.1.1", False),
    ]:
        assert (guard.address_fault(host, address) is None) is allowed, (host, address)
    assert guard.url_fault(Address.parse("http://10.1.2.3/")) is None


def test_one_private_address_among_several_spoils_them_all() -> None:
    assert STRICT.addresses_fault("x", ["8.8.8.8", "2606:4700::1"]) is None
    assert STRICT.addresses_fault("x", ["8.8.8.8", "127.0.0.1"]) is not None


def test_who_set_the_destination_is_not_told_what_is_where() -> None:
    assert PUBLIC.refusal("10.0.0.1 is not a public address") == PUBLIC.refusal(None)
    assert "10.0.0.1" in STRICT.refusal("10.0.0.1 is not a public address")
