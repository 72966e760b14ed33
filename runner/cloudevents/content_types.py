"""Media types and charsets: the meaning of a content type for the data."""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["BATCH_FORMAT", "JSON_FORMAT", "charset", "codec", "is_json", "media_type"]

JSON_FORMAT = "application/cloudevents+json"
"""Media type of one event in the JSON event format (JSON event format §3)."""
BATCH_FORMAT = "application/cloudevents-batch+json"
"""Media type of several (JSON batch format §4.2)."""

# Charsets in use whose codecs take linear time, because strangers name them. Python has dozens more, some not of texts.
_CHARSETS = (
    *(
        "utf-8",
        "us-ascii",
        "utf-16",
        "utf-16be",
        "utf-16le",
        "utf-32",
        "windows-31j",
        "shift_jis",
        "euc-jp",
        "iso-2022-jp",
    ),
    *("gb2312", "gbk", "gb18030", "big5", "euc-kr", "koi8-r", "koi8-u", "macintosh", "tis-620"),
    *(f"iso-8859-{part}" for part in (*range(1, 12), *range(13, 17))),
    *(f"windows-{page}" for page in (874, *range(1250, 1259))),
)
_ALIASES = {
    "utf8": "utf-8",
    "ascii": "us-ascii",
    "latin1": "iso-8859-1",
    "latin-1": "iso-8859-1",
    "cp1252": "windows-1252",
    "sjis": "shift_jis",
}
_PYTHON = {"windows-31j": "cp932", "windows-874": "cp874", "macintosh": "mac-roman"}
_CODECS = {name: _PYTHON.get(name, name) for name in _CHARSETS}
_CODECS |= {alias: _CODECS[name] for alias, name in _ALIASES.items()}
# The parameters before it are passed over as a whole: the value of another one may be quoted, with anything in it.
_CHARSET = re.compile(
    r'[^;"]*+(?:;(?!\s*charset\s*=)(?:[^;"]|"(?:[^"\\]|\\.)*+")*+)*+;\s*charset\s*=\s*"?([^\s";]+)', re.IGNORECASE
)


@lru_cache(maxsize=256)
def media_type(content_type: str) -> str:
    """Return the type and subtype in lower case, without parameters (RFC 9110 §8.3.1)."""
    return content_type.partition(";")[0].strip().lower()


@lru_cache(maxsize=256)
def is_json(content_type: str) -> bool:
    """Return whether the media type is `*/json` or `*/*+json` (JSON event format §3.1.1)."""
    subtype = media_type(content_type).partition("/")[2]
    return subtype == "json" or subtype.endswith("+json")


@lru_cache(maxsize=256)
def charset(content_type: str) -> str:
    """Return the `charset` parameter in lower case; `utf-8` without one."""
    found = _CHARSET.match(content_type)
    return found[1].lower() if found else "utf-8"


def codec(content_type: str) -> str | None:
    """Return Python's name for the charset of the content type; None for one that is not in common use."""
    return _CODECS.get(charset(content_type))
