"""Wording: numbers, durations and times for people, and hostile text made visible."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta

from markupsafe import Markup

from ..service.clock import utcnow

__all__ = ["ago", "commands", "count", "duration", "moment", "percent", "rate", "size", "visible"]

NOTHING = "\N{EN DASH}"
"""The mark where there is nothing to say."""

_KEPT = "\n\t"
_HIDDEN = (
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
)  # Unicode's categories of what shows nothing, or reorders what stands beside it
_COMMAND = re.compile(r"(.*?)(\brunner [a-z]+ (?:[a-z]+ )?.*)?", re.DOTALL)
_STEPS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def visible(text: str) -> str:
    r"""Return the text with characters that show nothing as escapes: `\u202e`. Line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(each if _shows(each) else each.encode("unicode_escape").decode() for each in text)


def _shows(character: str) -> bool:
    return character in _KEPT or unicodedata.category(character) not in _HIDDEN


def count(number: float | None) -> str:
    """Return a number with separated thousands, shortened above a million: `12,345`, `1.2M`."""
    if number is None:
        return NOTHING
    for least, unit in ((1e9, "G"), (1e6, "M")):
        if number >= least:
            return f"{number / least:.1f}{unit}"
    return f"{number:,.0f}"


def rate(per_second: float | None) -> str:
    """Return a rate with its significant digits: `0.25`, `4.2`, `1,204`."""
    if per_second is None:
        return NOTHING
    if per_second == 0:
        return "0"
    if per_second < 1:
        return f"{per_second:.2g}"
    return f"{per_second:.1f}" if per_second < 100 else count(per_second)


def percent(share: float | None) -> str:
    """Return a share in percent; less than all is never rounded up to 100 %."""
    if share is None:
        return NOTHING
    if share >= 1.0:
        return "100 %"
    return f"{min(share * 100, 99.99):.2f} %" if share >= 0.99 else f"{share * 100:.1f} %"


def duration(length: timedelta | float | None) -> str:
    """Return a duration, one of a number in seconds, in at most two units: `850 µs`, `12 ms`, `1.4 s`, `2 h 5 min`."""
    if length is None:
        return NOTHING
    seconds = length.total_seconds() if isinstance(length, timedelta) else float(length)
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.000_001:
        return "0 s"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.1f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return _long(round(seconds))


def _long(seconds: int) -> str:
    for index, (least, unit) in enumerate(_STEPS):
        whole, rest = divmod(seconds, int(least))
        if whole:
            lower = _STEPS[index + 1] if index + 1 < len(_STEPS) else None
            more = int(rest // lower[0]) if lower is not None and whole < 10 else 0
            return f"{whole} {unit}" + (f" {more} {lower[1]}" if lower is not None and more else "")
    return "0 s"


def size(number: int) -> str:
    """Return a number of bytes."""
    if number < 1024:
        return f"{number} B"
    amount, unit = (number / 1024, "KiB") if number < 1024**2 else (number / 1024**2, "MiB")
    return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:.0f} {unit}"


def moment(time: datetime | None) -> str:
    """Return a time in full, in UTC."""
    return NOTHING if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def ago(time: datetime | None, now: datetime | None = None) -> Markup:
    """Return a time as an element: relative to now, which the script keeps true, with the whole one on hover."""
    if time is None:
        return Markup('<span class="none nil">{}</span>').format(NOTHING)
    apart = ((now or utcnow()) - time).total_seconds()
    words = "now" if abs(apart) < 1 else f"{_long(int(apart))} ago" if apart > 0 else f"in {_long(int(-apart))}"
    iso = time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, moment(time), words)


def commands(cure: str) -> list[tuple[str, str]]:
    """Return the parts of a cure, each as its words and the command that follows them; one of both may be empty."""
    parts = []
    for part in cure.split("; "):
        words, command = _COMMAND.fullmatch(part).groups()  # type: ignore[union-attr]  # anything matches
        parts.append((words.strip(" :"), command or ""))
    return parts
