"""Text and the encoding of a database."""

from __future__ import annotations

from ..errors import EventError
from ..event import Event

__all__ = ["check_storable", "holds_everything", "storable"]

# Under SQL_ASCII PostgreSQL keeps the bytes it is sent, and what our connections send is UTF-8.
_UNIVERSAL = frozenset({"UTF8", "SQL_ASCII"})

# PostgreSQL's name -> Python's, where both know the same characters. Of others nothing but ASCII is relied on.
_CODECS = {
    **{
        f"LATIN{number}": f"iso8859_{part}"
        for number, part in zip(range(1, 11), (1, 2, 3, 4, 9, 10, 13, 14, 15, 16), strict=True)
    },
    **{f"ISO_8859_{part}": f"iso8859_{part}" for part in (5, 6, 7, 8)},
    **{f"WIN{page}": f"cp{page}" for page in (866, 874, 1250, 1251, 1252, 1253, 1254, 1256, 1257)},
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
}


def holds_everything(encoding: str) -> bool:
    """Return whether a database in `encoding` holds every event."""
    return encoding in _UNIVERSAL


def storable(text: str | None, encoding: str = "UTF8") -> str | None:
    r"""
    Return the storable form of a text that is no part of an event, such as an error.

    A NUL becomes U+FFFD or `?`, a lone surrogate `?`, and a character that the encoding lacks its escape: `\u2013`.
    """
    if text is None:
        return None
    if encoding in _UNIVERSAL:
        return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    codec = _codec(encoding)
    return text.replace("\0", "?").encode(codec, "backslashreplace").decode(codec)


def check_storable(event: Event, encoding: str) -> None:
    """Raise `EventError` where the database cannot hold an attribute of the event; its data is bytes."""
    attributes: dict[str, object] = {
        name: getattr(event, name) for name in ("type", "source", "id", "subject", "datacontenttype", "dataschema")
    }
    attributes |= {f"extension {name!r}": value for name, value in event.extensions.items()}
    codec = _codec(encoding)
    for name, value in attributes.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode(codec)
            except UnicodeEncodeError as error:
                raise EventError(
                    f"{name}: the encoding of the database, {encoding}, has no U+{ord(value[error.start]):04X}; "
                    "a database that is made with ENCODING 'UTF8' holds every event"
                ) from error


def _codec(encoding: str) -> str:
    return _CODECS.get(encoding, "ascii")
