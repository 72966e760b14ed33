"""The data of an event as text, shortened; no token of it is rewritten."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from ..event import Event

__all__ = ["Shown", "indented", "shown"]

_MOST = 64 * 1024  # bytes that are shown
_BINARY = 512  # bytes of binary data that are shown
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s"{}\[\],:]+', re.DOTALL)


class Shown(NamedTuple):
    """The data as text, its whole size in bytes, and how it is to be read: JSON, text or hexadecimal digits."""

    text: str
    size: int
    kind: str
    cut: bool


def shown(event: Event) -> Shown | None:
    """Return the data of an event as text; None without any."""
    data = event.data
    if data is None:
        return None
    cut = len(data) > _MOST
    try:
        text = data[:_MOST].decode("utf-8", "ignore" if cut else "strict")
    except UnicodeDecodeError:
        return Shown(data[:_BINARY].hex(" ", 2), len(data), "hex", len(data) > _BINARY)
    if "json" in (event.datacontenttype or "json") and not cut:
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return Shown(indented(text), len(data), "json", False)
    return Shown(text, len(data), "text", cut)


def indented(text: str) -> str:
    """Return JSON with a line for each member. Its tokens stay unchanged: no number is parsed and formatted again."""
    tokens = _TOKEN.findall(text)
    parts: list[str] = []
    depth = 0
    for number, token in enumerate(tokens):
        following = tokens[number + 1] if number + 1 < len(tokens) else ""
        if token in ("{", "["):
            depth += 1
            parts.append(token if following in ("}", "]") else f"{token}\n{_margin(depth)}")
        elif token in ("}", "]"):
            depth -= 1
            parts.append(token if number and tokens[number - 1] in ("{", "[") else f"\n{_margin(depth)}{token}")
        elif token == ",":
            parts.append(f",\n{_margin(depth)}")
        else:
            parts.append(": " if token == ":" else token)
    return "".join(parts)


def _margin(depth: int) -> str:
    return "  " * min(depth, 40)
