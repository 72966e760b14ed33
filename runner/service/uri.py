"""
The syntax of URI references (RFC 3986, appendix A), decided in linear time.

Characters beyond ASCII count as percent-encoded, as RFC 3987 §3.1 maps them.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from ..errors import EventError

__all__ = ["check_references", "is_ipv6", "is_uri", "is_uri_reference"]

_ENCODED = "%[0-9A-Fa-f]{2}"
_ANYWHERE = r"\w.~!$&'()*+,;=\x80-\U0010ffff-"  # unreserved, sub-delims, and what is percent-encoded
_REPEATED = 4096  # characters of attributes that are the same in event after event, to be remembered as checked


def _run(more: str, quantifier: str = "*+") -> str:
    """Return the pattern of a run of what is allowed anywhere and of `more`; it never backtracks."""
    return f"(?:[{more}{_ANYWHERE}]++|{_ENCODED}){quantifier}"


_PATH = _run(":@/")


def _authority(host: str) -> str:
    """Return the pattern of an authority and the path behind it; an address in brackets is the group `host`."""
    literal = rf"[0-9A-Fa-f:.]+|[vV][0-9A-Fa-f]+\.[:{_ANYWHERE}]+"
    return rf"//(?:{_run(':')}@)?(?:\[(?P<{host}>{literal})\]|{_run('')})(?::[0-9]*+)?(?:/{_PATH})?"


_ABSOLUTE = rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*+):(?:{_authority('host')}|(?!//){_PATH})"
_RELATIVE = rf"{_authority('other')}|(?!//)(?:/{_PATH}|{_run('@', '++')}(?:/{_PATH})?)?"
_REFERENCE = re.compile(rf"(?:{_ABSOLUTE}|{_RELATIVE})(?:\?{_run(':@/?')})?(?:#{_run(':@/?')})?", re.ASCII)


def is_uri_reference(text: str) -> bool:
    """Return whether `text` is a URI, or a reference relative to one (§4.1)."""
    return _parsed(text) is not None


def is_uri(text: str) -> bool:
    """Return whether `text` is a URI, with its scheme (§3)."""
    found = _parsed(text)
    return found is not None and found["scheme"] is not None


def check_references(source: str, dataschema: str | None) -> None:
    """
    Check the attributes of an event that are URIs (CloudEvents 1.0 §3.1).

    Raises:
        EventError: `source` is no URI reference, or `dataschema` no URI.
    """
    short = len(source) + len(dataschema or "") <= _REPEATED
    (_check_references if short else _check_references.__wrapped__)(source, dataschema)


@lru_cache(maxsize=1024)
def _check_references(source: str, dataschema: str | None) -> None:
    if not is_uri_reference(source):
        raise _fault("source", source, "a URI reference (RFC 3986), such as /shop or https://shop.example")
    if dataschema is not None and not is_uri(dataschema):
        raise _fault("dataschema", dataschema, "a URI (RFC 3986), such as https://shop.example/order.json")


def _fault(name: str, value: str, expected: str) -> EventError:
    shown = ascii(value if len(value) <= 40 else f"{value[:40]}...")
    return EventError(
        f"{name}: expected {expected}, got {shown}; percent-encode what may not stand in one", attribute=name
    )


def _parsed(text: str) -> re.Match[str] | None:
    found = _REFERENCE.fullmatch(text)
    if found is None or "[" not in text:
        return found
    host = found["host"] or found["other"] or ""
    return found if host[:1] in ("v", "V") or is_ipv6(host) else None


def is_ipv6(text: str) -> bool:
    """Return whether `text` is an IPv6 address, without brackets."""
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
