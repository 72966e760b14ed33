"""Cron expressions in a time zone: which instants an expression names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

if TYPE_CHECKING:
    from cronsim import CronSim

__all__ = ["Cron", "CronError", "NeverFires", "zone_of"]

_NAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_ONE_OF = re.compile(
    r"\b(\w+)-\1/[1-9][0-9]*\b", re.ASCII
)  # a step in a span of one, which cronsim takes for "from it on"
_SECOND = timedelta(seconds=1)
_DAY = timedelta(days=1)
_GAPS = 100  # skipped hours in a row after which an expression counts as having no further time
_LONGEST = 1000  # characters of an expression
_BEGINNING = datetime(2024, 1, 1)


class CronError(ValueError):
    """The text is no cron expression."""


class NeverFires(CronError):
    """The expression names no date that exists, such as 30 February."""


class Cron:
    """
    The instants that a cron expression names in a time zone.

    Five fields, or six with seconds first; `@daily` and the like; names of days and months, `L`, `LW` and `#`. If day
    of month and day of week are both restricted, either is enough (crontab(5)). cronsim knows the fields; where the
    clock is changed this class decides as Debian's cron does:

    - A job at fixed times (five fields, neither minute nor hour begins with `*`) that falls into the hour that is
      skipped fires at the moment after it; one in the hour that comes twice fires the first time.
    - Any other follows the clock on the wall: nothing in the hour that is skipped, each time in one that comes twice.
    """

    def __init__(self, expression: str, zone: str = "UTC") -> None:
        """
        Read `expression`.

        Raises:
            CronError: it cannot be read.
            NeverFires: it can, and names no date.
            ValueError: `zone` is no IANA time zone.
        """
        self._zone = zone_of(zone)
        fields = _ONE_OF.sub(r"\1", _NAMES.get(expression.strip().lower(), expression).upper()).split()
        self._simulation = _parsed(expression, " ".join(fields))
        self._fixed = len(fields) == 5 and not fields[0].startswith("*") and not fields[1].startswith("*")

    def after(self, moment: datetime) -> datetime | None:
        """Return the first instant after `moment`, both in UTC; None if there is none within 50 years."""
        moment = moment.astimezone(UTC).replace(microsecond=0)
        return self._next_fixed(moment) if self._fixed else self._next_on_the_wall(moment)

    def _next_fixed(self, moment: datetime) -> datetime | None:
        for wall in self._walls(_wall(moment, self._zone)):
            instant = _instant(wall, self._zone)
            if _wall(instant, self._zone) != wall:  # skipped
                instant = _change(instant - 2 * _DAY, instant + _DAY, self._zone, wall)
            if instant > moment:
                return instant
        return None

    def _next_on_the_wall(self, moment: datetime) -> datetime | None:
        found = None
        start = _wall(moment, self._zone)
        for _ in range(_GAPS):
            wall = next(self._walls(start), None)
            if wall is None:
                break
            found = next((each for each in _instants(wall, self._zone) if each > moment), None)
            if found is not None:
                break
            # Skipped, or the first of two that are both over: go on behind the gap, or behind this one.
            start = max(wall, self._behind_gap(wall) - _SECOND)
        again = self._first_of_repeated(moment)
        return again if found is None or (again is not None and again < found) else found

    def _first_of_repeated(self, moment: datetime) -> datetime | None:
        """Return the first instant after the clock is next set back, if that happens within a day."""
        before, after = (each.astimezone(self._zone).utcoffset() for each in (moment, moment + _DAY))
        if before is None or after is None or after >= before:
            return None
        change = _change(moment, moment + _DAY, self._zone)
        wall = next(self._walls(_wall(change, self._zone) - _SECOND), None)
        if wall is None:
            return None
        instant = wall.replace(tzinfo=UTC) - after
        return instant if _wall(instant, self._zone) == wall else None  # else it is of another season

    def _behind_gap(self, wall: datetime) -> datetime:
        """Return the first time on the wall after `wall` that is not skipped."""
        instant = _instant(wall, self._zone)
        if _wall(instant, self._zone) == wall:
            return wall
        return _wall(_change(instant - 2 * _DAY, instant + _DAY, self._zone, wall), self._zone)

    def _walls(self, after: datetime) -> Iterator[datetime]:
        """Yield the times named by the fields after this one, without regard to the zone."""
        simulation = self._simulation
        simulation.dt = after
        while True:
            try:
                wall = next(simulation)
            except (StopIteration, OverflowError):
                return
            yield wall
            simulation.dt = wall  # another caller may have asked meanwhile


@lru_cache(maxsize=1024)
def zone_of(name: str) -> ZoneInfo:
    """Return the IANA time zone. Raise `ValueError` if there is none of this name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}") from error


def _parsed(written: str, fields: str) -> CronSim:
    from cronsim import CronSim, CronSimError  # of use to schedules only

    if len(fields) > _LONGEST:
        raise CronError(f"it has more than {_LONGEST} characters")
    if written.strip().startswith("@") and fields.startswith("@"):
        names = ", ".join(sorted(_NAMES))
        raise CronError(f"expected one of {names}")
    if (count := len(fields.split())) not in (5, 6):
        raise CronError(f"expected five fields, or six with seconds first, got {count}")
    try:
        simulation = CronSim(fields, _BEGINNING)
        next(CronSim(fields, _BEGINNING))
    except StopIteration:
        raise NeverFires("it names no date that ever comes") from None
    except (CronSimError, ValueError, OverflowError) as error:
        if _each_is_right(fields.split()):
            raise NeverFires("it names no date that ever comes") from error
        raise CronError(str(error).lower() or "it cannot be read") from error
    return simulation


def _each_is_right(fields: list[str]) -> bool:
    """Return whether the fields can be read each for itself, so that only together they name nothing."""
    from cronsim import CronSimError
    from cronsim.cronsim import Field

    kinds = list(Field)[-len(fields) :] if len(fields) in (5, 6) else []
    try:
        return bool([kind.parse(field) for kind, field in zip(kinds, fields, strict=False)])
    except (CronSimError, ValueError, OverflowError):
        return False


def _wall(instant: datetime, zone: ZoneInfo) -> datetime:
    """Return what the clock on the wall shows."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def _instant(wall: datetime, zone: ZoneInfo, fold: int = 0) -> datetime:
    """Return when the clock shows `wall`; of two times the first; of none one beside the gap."""
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _instants(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return every instant at which the clock shows `wall`: one, two, or none."""
    both = sorted({_instant(wall, zone), _instant(wall, zone, 1)})
    return [each for each in both if _wall(each, zone) == wall]


def _change(low: datetime, high: datetime, zone: ZoneInfo, wall: datetime | None = None) -> datetime:
    """
    Return the instant at which the offset changes between two, to the second.

    Args:
        wall: a time that is skipped: the change that is meant is the one that skips it.
    """
    if wall is None:
        offset = low.astimezone(zone).utcoffset()

        def over(instant: datetime) -> bool:
            return instant.astimezone(zone).utcoffset() != offset
    else:
        skipped = wall

        def over(instant: datetime) -> bool:
            return _wall(instant, zone) > skipped

    while high - low > _SECOND:
        middle = low + ((high - low) // 2 // _SECOND) * _SECOND
        low, high = (low, middle) if over(middle) else (middle, high)
    return high
