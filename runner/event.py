"""The event: an immutable CloudEvents 1.0 record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import orjson
import uuid_utils
from msgspec import Struct, field
from msgspec.structs import replace

from .errors import EventError, EventTooLarge
from .service.uri import check_references

__all__ = [
    "CIRCUMSTANCES",
    "EXPIRY",
    "MAX_DATA_BYTES",
    "NO_EXTENSIONS",
    "Event",
    "ExtensionValue",
    "allowed_text",
    "check_type",
    "lasting",
    "new_id",
    "read_timestamp",
    "shown",
    "weigh",
    "write_timestamp",
]

ExtensionValue = str | int | bool

MAX_DATA_BYTES = 1024 * 1024
"""The largest `data` that the bus accepts, in bytes. CloudEvents 1.0 §6 obliges intermediaries to carry 64 KiB."""

_MAX_ATTRIBUTE = 65_536  # characters: CloudEvents 1.0 §6 obliges intermediaries to carry events of 64 KiB
_MAX_TOGETHER = 131_072  # bytes of all attributes, and of the names of extensions
_MAX_EXTENSIONS = 1000
_FEW = _MAX_TOGETHER // 4  # characters; so few are never too many bytes
_DIGITS_OF_INTEGER = 11  # at most, and the sign
_REPEATED = 4096  # characters of repeated attributes that are cached as checked
NO_EXTENSIONS: Mapping[str, ExtensionValue] = MappingProxyType({})
"""The extensions of most events: one empty object for all of them."""
CIRCUMSTANCES = frozenset({"causationid", "correlationid", "expirytime", "runnerhops", "traceparent", "tracestate"})
"""Extensions that describe the publishing of an event, and not what happened.

They differ when the same call is made again. So they do not count when events of the same source and id are compared,
and stay as first recorded."""
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9]{1,100}\Z")  # more than 20 characters are allowed, though not recommended (§3.1)
# RFC 2045 §5.1: type "/" subtype, then parameters; printable ASCII, because it travels as a header of its own.
_MEDIA_TYPE = re.compile(r"[\w!#$&^.+-]+/[\w!#$&^.+-]+[ ]*(?:;[ -~]*)?\Z", re.ASCII)
EXPIRY = "expirytime"
"""The CloudEvents extension for the time at which an event expires."""

_RFC3339 = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt](?P<minute>(?:[01]\d|2[0-3]):[0-5]\d):(?P<second>[0-5]\d|60)"
    r"(?:\.(?P<fraction>\d+))?(?P<offset>[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)\Z",
    re.ASCII,
)
_LONG_NUMBER = b"0" * 19
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_FIELDS = frozenset({"id", "source", "type", "subject", "time", "datacontenttype", "dataschema"})
_CORE = _FIELDS | {"specversion", "data"}
# CloudEvents 1.0 §3.1: no control characters, no noncharacters; a lone surrogate cannot be encoded at all.
_FORBIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)


def new_id() -> str:
    """Return a new event id: UUID version 7 (RFC 9562 §5.7), so that ids sort by time."""
    return str(uuid_utils.uuid7())


def allowed_text(text: str) -> str:
    """Return `text` with every character that attributes may not have replaced by U+FFFD."""
    return _FORBIDDEN.sub("\ufffd", text)


class Event(Struct, frozen=True, kw_only=True):
    """
    A fact that happened, in the shape of CloudEvents 1.0.

    `source` and `id` together are its identity: publishing the same pair again changes nothing.
    `data` holds the bytes exactly as they were received; `json()` reads them. A `time` that was
    not given is the moment the bus recorded the event.
    """

    type: str
    source: str
    id: str = field(default_factory=new_id)
    subject: str | None = None
    time: datetime | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, ExtensionValue] = NO_EXTENSIONS
    data: bytes | None = None

    @classmethod
    def new(cls, type: str, data: object = None, *, source: str, **attributes: Any) -> Event:
        """
        Return a checked event; `data` that is not bytes is written as JSON.

        Args:
            type: such as `order.created`.
            data: bytes are kept as they are; anything else becomes `application/json`; None is no data.
            source: a URI reference that names the producer.
            attributes: any other field of `Event`.

        Raises:
            EventError: an attribute breaks CloudEvents 1.0, or the data is no JSON.
        """
        if data is not None and not isinstance(data, bytes):
            attributes.setdefault("datacontenttype", "application/json")
            data = _written(data)
        event = cls(type=type, source=source, data=data, **attributes)
        event.validate()
        check_references(event.source, event.dataschema)
        return event

    def json(self) -> Any:
        """
        Return `data` parsed as JSON; None without data.

        Integers are exact, whatever their size; other numbers are floats. Of members with one name the last one counts.

        Raises:
            EventError: it is no JSON, or holds a number that no float can.
        """
        if self.data is None:
            return None
        try:
            value = orjson.loads(self.data)
            # orjson makes floats of integers beyond 64 bits, which have 19 digits at least.
            return json.loads(self.data) if _LONG_NUMBER in self.data.translate(_DIGITS) else value
        except (ValueError, RecursionError) as error:
            raise EventError(f"event {self.id!r}: data is not JSON: {error}") from error

    def attribute(self, name: str) -> str | None:
        """Return the attribute or extension `name` in its canonical text form (CloudEvents 1.0 §3.1); None without."""
        value: object = getattr(self, name) if name in _FIELDS else self.extensions.get(name)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        return write_timestamp(self.time) if self.time else None

    @property
    def expires_at(self) -> datetime | None:
        """When the event expires, by its `expirytime`; None if it is missing or cannot be read."""
        expiry = self.extensions.get(EXPIRY)
        try:
            return None if expiry is None else read_timestamp(EXPIRY, expiry)
        except EventError:  # a row written by another program
            return None

    def recorded_at(self, moment: datetime) -> Event:
        """Return the event as readers see it: `time` is `moment` if the publisher gave none."""
        return self if self.time is not None else self.replace(time=moment)

    def replace(self, **attributes: Any) -> Event:
        """Return the event with these attributes in place of its own; they are checked when it is published."""
        return replace(self, **attributes)

    def validate(self) -> None:
        """
        Raise `EventError` at the first attribute that breaks CloudEvents 1.0 §3 or a limit of the bus.

        The syntax of URIs is checked only at publishing (`EventBus.publish()`, `Event.new()`): events recorded by
        earlier versions are still delivered.
        """
        repeated = self.type, self.source, self.datacontenttype, self.dataschema
        try:
            size = len(self.type) + len(self.source) + len(self.dataschema or "") + len(self.datacontenttype or "")
            (_check_repeated if size <= _REPEATED else _check_repeated.__wrapped__)(*repeated)
        except TypeError:  # a value without a length, or that cannot be hashed
            _check_repeated.__wrapped__(*repeated)
        _check_text("id", self.id)
        if self.subject is not None:
            _check_text("subject", self.subject)
        if self.time is not None:
            _check_time(self.time)
        texts = len(self.id) + len(self.source) + len(self.type) + len(self.subject or "")
        texts += len(self.datacontenttype or "") + len(self.dataschema or "")
        if self.extensions:
            if len(self.extensions) > _MAX_EXTENSIONS:
                raise EventTooLarge(f"extensions: {len(self.extensions)}, at most {_MAX_EXTENSIONS} are taken")
            for name, value in self.extensions.items():
                _check_extension(name, value)
                texts += len(name) + (len(value) if isinstance(value, str) else _DIGITS_OF_INTEGER)
        if texts > _FEW:
            _check_together(self)
        if self.data is not None:
            if not isinstance(self.data, bytes):
                raise EventError(
                    f"data: expected bytes, got {type(self.data).__name__}; Event.new() writes JSON", attribute="data"
                )
            if len(self.data) > MAX_DATA_BYTES:
                raise EventTooLarge(
                    f"data: {len(self.data)} bytes, at most {MAX_DATA_BYTES} are taken", attribute="data"
                )


def lasting(extensions: Mapping[str, ExtensionValue]) -> Mapping[str, ExtensionValue]:
    """Return the extensions that stay the same when the event is published again."""
    if CIRCUMSTANCES.isdisjoint(extensions):
        return extensions
    return {name: value for name, value in extensions.items() if name not in CIRCUMSTANCES}


def read_timestamp(name: str, value: object) -> datetime:
    """
    Return a timestamp of RFC 3339 §5.6 in UTC; digits beyond microseconds are cut off.

    A leap second is read as the first moment of the next day.

    Args:
        name: of the attribute, for the error.

    Raises:
        EventError: it is none.
    """
    found = _RFC3339.match(value) if isinstance(value, str) else None
    try:
        if found is None:
            raise ValueError("no match")
        leap = found["second"] == "60"
        fraction = "0" if leap else (found["fraction"] or "0")[:6]
        offset = "+00:00" if found["offset"] in "Zz" else found["offset"]
        second = "59" if leap else found["second"]
        text = f"{found['day']}T{found['minute']}:{second}.{fraction.ljust(6, '0')}{offset}"
        time = datetime.fromisoformat(text).astimezone(UTC)
        return _after_leap_second(time) if leap else time
    except (ValueError, OverflowError) as error:
        raise EventError(
            f"{name}: expected RFC 3339, such as '2026-01-31T12:00:00Z', got {shown(value)}", attribute=name
        ) from error


def _after_leap_second(last: datetime) -> datetime:
    """Return the moment after `last`, the 60th second of a month's last minute (RFC 3339 §5.7)."""
    following = last + timedelta(seconds=1)
    if (following.day, following.hour, following.minute) != (1, 0, 0):
        raise ValueError("no leap second")
    return following


def write_timestamp(time: datetime) -> str:
    """Return the canonical text of a time: RFC 3339, in UTC (CloudEvents 1.0 §3.1)."""
    utc = time if time.tzinfo is UTC else time.astimezone(UTC)
    return f"{utc.isoformat()[: -len('+00:00')]}Z"


def shown(value: object) -> str:
    """Return a value for an error message: short, without control characters."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return ascii(value if not isinstance(value, str) or len(value) <= 40 else value[:40] + "...")


def weigh(events: Sequence[Event]) -> int:
    """Return the approximate memory of events: the bytes of their data, and sixteen per byte of extensions."""
    data = sum([len(event.data) for event in events if event.data is not None])
    return data + sum([16 * len(orjson.dumps(dict(event.extensions))) for event in events if event.extensions])


def _written(data: object) -> bytes:
    """Return `data` as equivalent JSON, or raise `EventError`."""
    try:
        written = orjson.dumps(data)
    except orjson.JSONEncodeError as error:
        raise EventError(f"data: cannot be written as JSON: {error}") from error
    if b"null" in written and _holds_no_number(data):  # orjson writes NaN and infinity as null
        raise EventError("data: cannot be written as JSON: NaN and infinity are no numbers there (RFC 8259 §6)")
    return written


def _holds_no_number(data: object) -> bool:
    match data:
        case float():
            return not math.isfinite(data)
        case dict():
            return any(map(_holds_no_number, data.values()))
        case list() | tuple():
            return any(map(_holds_no_number, data))
        case _ if is_dataclass(data):
            return any(_holds_no_number(getattr(data, each.name)) for each in fields(data))
        case _:
            return False


def check_type(value: object) -> None:
    """Raise `EventError` unless `value` can be the type of an event."""
    _check_text("type", value)


def _check_text(name: str, value: object, *, extension: bool = False) -> None:
    is_media_type = name == "datacontenttype"
    if (
        not is_media_type
        and isinstance(value, str)
        and 0 < len(value) <= _MAX_ATTRIBUTE
        and value.isascii()
        and value.isprintable()
    ):
        return
    fault = _fault_of(value, is_media_type)
    if fault is not None:
        kind = EventTooLarge if isinstance(value, str) and len(value) > _MAX_ATTRIBUTE else EventError
        raise kind(f"extension {name!r}: {fault}" if extension else f"{name}: {fault}", attribute=name)


def _fault_of(value: object, is_media_type: bool) -> str | None:
    if not isinstance(value, str):
        return f"expected a string, got {type(value).__name__}"
    if not value:
        return "must not be empty"
    if len(value) > _MAX_ATTRIBUTE:
        return f"{len(value)} characters, at most {_MAX_ATTRIBUTE} are taken"
    if not value.isascii() or not value.isprintable():
        found = _FORBIDDEN.search(value)
        if found:
            return f"the character U+{ord(found[0]):04X} is not allowed (CloudEvents 1.0 §3.1)"
    if is_media_type and not _MEDIA_TYPE.match(value):
        return f"expected a media type (RFC 2046), got {value[:80]!a}"
    return None


@lru_cache(maxsize=1024, typed=True)  # typed: a value of another type that equals a text is checked separately
def _check_repeated(type: object, source: object, datacontenttype: object, dataschema: object) -> None:
    """Check the attributes that many events share, with a cache."""
    _check_text("type", type)
    _check_text("source", source)
    if dataschema is not None:
        _check_text("dataschema", dataschema)
    if datacontenttype is not None:
        _check_text("datacontenttype", datacontenttype)


def _check_together(event: Event) -> None:
    values = [getattr(event, name) for name in _FIELDS if name != "time"]
    texts = [value for value in values if value is not None] + [
        f"{name}{value}" for name, value in event.extensions.items()
    ]
    size = sum(len(text.encode()) for text in texts)
    if size > _MAX_TOGETHER:
        raise EventTooLarge(f"attributes: {size} bytes together, at most {_MAX_TOGETHER} are taken")


def _check_time(value: object) -> None:
    if not isinstance(value, datetime):
        raise EventError(f"time: expected a datetime, got {type(value).__name__}", attribute="time")
    if value.tzinfo is None:
        raise EventError(
            f"time: expected a time with an offset (RFC 3339), got {value.isoformat()!r}", attribute="time"
        )
    try:
        value.astimezone(UTC)
    except OverflowError as error:
        raise EventError(f"time: {value.isoformat()!r} is no time in UTC", attribute="time") from error


def _check_extension(name: object, value: object) -> None:
    if not isinstance(name, str) or not _ATTRIBUTE_NAME.match(name) or name in _CORE:
        named = name if isinstance(name, str) and len(name) <= 100 else None
        raise EventError(
            f"extension {ascii(name)[:120]}: expected 1-100 of a-z and 0-9, other than the names CloudEvents defines",
            attribute=named,
        )
    if name == EXPIRY:
        read_timestamp(name, value)
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -(2**31) <= value < 2**31:
            raise EventError(
                f"extension {name!r}: {value} does not fit in 32 bits (CloudEvents 1.0 §3.1)", attribute=name
            )
        return
    if value == "":
        return
    _check_text(name, value, extension=True)
