"""Which destinations a post may go to: a pure policy on the URL, and on each address that is dialled."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .address import Address

__all__ = ["ANYWHERE", "PUBLIC", "Guard", "Network", "is_public"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.IGNORECASE | re.ASCII)

# Python's `is_global` depends on the version and counts wrappers of private addresses as global (3.11.7: 6to4, NAT64,
# IPv4-compatible), so the lists are our own: IANA's special-purpose registries, and the metadata address of Azure.
_SPECIAL_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network (RFC 791)
            "10.0.0.0/8",  # private (RFC 1918)
            "100.64.0.0/10",  # carrier-grade NAT (RFC 6598)
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host
            "169.254.0.0/16",  # link-local, and the metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments (RFC 6890)
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks (RFC 2544)
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
# All public unicast addresses of IPv6 so far are here; outside are loopback, unspecified, IPv4-mapped and -compatible,
# NAT64, discard-only, SRv6, unique local, link-local, site-local and multicast ones.
_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID (RFC 2928)
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which wraps any IPv4 address (RFC 3056)
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Guard:
    """
    A policy for the destinations of posts.

    Check `url_fault()` once, and `address_fault()` for every address that the name resolves to and for the peer of the
    connection: a name may resolve to something else the next time.

    Attributes:
        public: only public addresses, but for `hosts` and `cidrs`.
        http: http:// as well as https://.
        hosts: names that may be at any address; `*.example.com` stands for every name below that one.
        cidrs: networks that may be dialled besides the public ones.
        ports: the only ports, if there are any.
        discreet: never say why a connection failed, because that would let the author of a destination scan the
            network.
    """

    public: bool = True
    http: bool = False
    hosts: tuple[str, ...] = ()
    cidrs: tuple[Network, ...] = ()
    ports: frozenset[int] = frozenset()
    discreet: bool = False

    def url_fault(self, address: Address) -> str | None:
        """Return what is wrong with the destination before any name is looked up; None for nothing."""
        if not address.secure and not self.http:
            return "http:// is not allowed here, only https://"
        if self.ports and address.port not in self.ports:
            return f"port {address.port} is not allowed here, only {', '.join(map(str, sorted(self.ports)))}"
        literal = _address(address.host)
        if literal is not None:
            return self.address_fault(address.host, address.host)
        last = address.host.rstrip(".").rpartition(".")[2]
        if self.public and _NUMBER.fullmatch(last):
            return "an address in another form than 192.0.2.1 is not allowed here"
        return None

    def address_fault(self, host: str, address: str) -> str | None:
        """Return why `address`, which `host` resolves to or is, must not be dialled; None if it may be."""
        if not self.public or self._is_named(host):
            return None
        found = _address(address)
        if found is not None and (_is_public(found) or any(found in network for network in self.cidrs)):
            return None
        return f"{address} is not a public address"

    def addresses_fault(self, host: str, addresses: Iterable[str]) -> str | None:
        """Return why one of the addresses of `host` must not be dialled, and with it none of them."""
        return next((fault for each in addresses if (fault := self.address_fault(host, each))), None)

    def refusal(self, fault: str | None) -> str:
        """Return the error of a connection refused for this reason."""
        if self.discreet:
            return "cannot connect to the destination"
        return f"not allowed: {fault}; name its host or network in allow if it is meant"

    def _is_named(self, host: str) -> bool:
        name = host.rstrip(".").lower()
        return any(
            name.endswith(pattern[1:]) if pattern.startswith("*.") else name == pattern
            for pattern in (each.rstrip(".").lower() for each in self.hosts)
        )


ANYWHERE = Guard(public=False, http=True)
"""For destinations that the operator wrote into the file."""

PUBLIC = Guard(ports=frozenset({443, 8443}), discreet=True)
"""For destinations that others may set: https, public addresses, ports of web servers."""


def is_public(address: str) -> bool:
    """Return whether `address` (text of an IP address) is a public unicast one; a wrapper of IPv4 is not, but a map."""
    found = _address(address)
    return found is not None and _is_public(found)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _SPECIAL_V4)
    return address in _UNICAST_V6 and not any(address in network for network in _SPECIAL_V6)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address, an IPv4-mapped one as IPv4, without its zone; None for a name or another form."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
