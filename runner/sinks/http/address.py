"""The address of a post: the parts of a URL, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from ...service.uri import is_ipv6

__all__ = ["Address"]

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(#.*)?", re.IGNORECASE | re.DOTALL)
_AUTHORITY = re.compile(r"(?P<host>\[(?P<v6>[0-9A-Fa-f:.]+)\]|[0-9A-Za-z._-]+)(?::(?P<port>[0-9]{0,5}))?", re.ASCII)
_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LONGEST = 8000  # characters; RFC 9110 §4.1 asks servers for as many bytes


@dataclass(frozen=True, slots=True)
class Address:
    """
    One http(s) URL.

    Attributes:
        secure: whether the scheme is https.
        host: a name, or an IP address without brackets.
        port: as given, or the default of the scheme.
        authority: the value of the `Host` header; a default port is left out.
        target: path and query for the request line, byte for byte as written. An empty path is `/`, and
            characters outside ASCII, which cannot be sent, are percent-encoded as UTF-8.
    """

    secure: bool
    host: str
    port: int
    authority: str
    target: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse `url`. Raise `ValueError`, whose text repeats nothing of the URL."""
        if len(url) > _LONGEST:
            raise ValueError(f"a URL of {len(url)} characters is refused; at most {_LONGEST} are taken")
        found = _URL.fullmatch(url)
        if found is None or re.search(r"[\x00-\x20\x7f\ud800-\udfff]", url):
            raise ValueError("expected an absolute URL, such as https://crm.example.com/events")
        scheme, authority, target, fragment = found.groups()
        if "@" in authority:
            raise ValueError("a URL with a user or password is refused; use headers: {Authorization: …}")
        if fragment:
            raise ValueError("a URL with a fragment (#…) is refused; a server never sees it")
        if not authority.isascii():
            raise ValueError("the host of the URL is not ASCII; write an international name as xn--…")
        parts = _AUTHORITY.fullmatch(authority)
        port = int(parts["port"] or _DEFAULT_PORTS[scheme.lower()]) if parts else 0
        if parts is None or not 0 < port < 65536 or (parts["v6"] and not is_ipv6(parts["v6"])):
            raise ValueError("expected an absolute URL with a host, such as https://crm.example.com/events")
        named = parts["host"] if port == _DEFAULT_PORTS[scheme.lower()] else f"{parts['host']}:{port}"
        path = target if target.startswith("/") else f"/{target}"
        return cls(scheme.lower() == "https", parts["v6"] or parts["host"], port, named, quote(path, safe=_ASCII))

    @property
    def peer(self) -> str:
        """Host and port, the only parts of the URL that may be shown; the rest can be secret."""
        return f"{self.host}:{self.port}"
