"""Options that several verbs share: `-c`, `--json`, times and durations on the command line."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

if TYPE_CHECKING:
    from ..config import Config

__all__ = [
    "DURATION",
    "MOMENT",
    "SINCE",
    "config_option",
    "content_of",
    "count_option",
    "dry_run_option",
    "json_option",
    "limit_option",
    "load",
    "rate_option",
    "settings",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_EXAMPLE = "2026-01-31T12:00:00Z"
_YEARS = range(1900, 9000)


_SETTINGS = "runner.settings"
_DEFAULT = Path("runner.yaml")  # what `runner init` writes


def _require(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> Path:
    if path is not None:
        return path
    if ctx.params.get("url"):  # then a server is asked, and no file is needed
        return _DEFAULT
    if not _DEFAULT.exists():
        raise click.UsageError(
            f"no configuration: no ./{_DEFAULT} here, and none given with -c FILE or in $RUNNER_CONFIG; "
            "`runner init` writes a first one"
        )
    return _DEFAULT


def config_option(command: Command) -> Command:
    """Add `-c FILE` as the argument `path`, and `--set`, which `settings()` returns."""
    command = click.option(
        "--set",
        multiple=True,
        metavar="KEY=VALUE",
        expose_value=False,
        callback=_keep_settings,
        help="Use this YAML value in place of the file's: worker.batch=100; may be repeated.",
    )(command)
    return click.option(
        "-c",
        "--config",
        "path",
        envvar="RUNNER_CONFIG",
        type=click.Path(path_type=Path, readable=False),  # the loader reports an unreadable file
        metavar="FILE",
        callback=_require,
        help="The configuration; unless given $RUNNER_CONFIG, or else ./runner.yaml.",
    )(command)


def _keep_settings(ctx: click.Context, _parameter: click.Parameter, settings: tuple[str, ...]) -> None:
    ctx.meta[_SETTINGS] = settings


def settings() -> tuple[str, ...]:
    """Return what `--set` of the running verb was given."""
    ctx = click.get_current_context(silent=True)
    found: tuple[str, ...] = () if ctx is None else ctx.meta.get(_SETTINGS, ())
    return found


def json_option(command: Command) -> Command:
    """Add `--json` as the argument `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: an object, or for a list one per line.")(
        command
    )


def limit_option(command: Command) -> Command:
    """Add `--limit N`."""
    return click.option(
        "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Print at most this many."
    )(command)


def count_option(command: Command) -> Command:
    """Add `-n N` as the argument `count`."""
    return click.option(
        "-n", "count", type=click.IntRange(1, 100_000), default=10, show_default=True, help="Number of times to print."
    )(command)


def dry_run_option(command: Command) -> Command:
    """Add `--dry-run`."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(command)


def rate_option(command: Command) -> Command:
    """Add `--rate N/s` as the argument `every`, the time between two."""
    return click.option(
        "--rate", "every", type=RATE, metavar="N/s", help="Spread them over time, such as 10/s or 500/m; else at once."
    )(command)


def load(path: Path, *, level: str = "warning", imports: bool = False) -> Config:
    """
    Read the configuration for a verb that ends by itself, and log no less than `level`.

    The log is for people unless the file says `json`: these verbs are typed, and `auto` would see a pipe.

    The modules that the file names are imported only with `imports`: a verb that publishes or reads does not need them.

    Raises:
        ConfigError: with every fault of the file.
    """
    with _absent("rich"):  # structlog would load it for tracebacks, which it never prints
        from ..log.setup import configure
    if not imports:  # looking for plug-ins of pydantic takes as long as reading the file, and we use none
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from ..config import load_config

    configure(level, "console")
    config = load_config(path, imports=imports, settings=settings())
    if config.log.format == "json":
        configure(level, "json")
    return config


@contextlib.contextmanager
def _absent(package: str) -> Iterator[None]:
    """Import modules inside the block as if `package` were not installed, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the way to say so, docs of `import`
    try:
        yield
    finally:
        del sys.modules[package]


class Duration(click.ParamType[timedelta]):
    """A length of time, written as in the configuration: `500ms`, `2s`, `1h30m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the length of time `value` spells."""
        if isinstance(value, timedelta):
            return value
        from ..config.duration import parse_duration

        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[datetime]):
    """A point in time by RFC 3339; with `ago`, also a duration before now."""

    name = "time"

    def __init__(self, *, ago: bool = False) -> None:
        self._ago = ago

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the point in time `value` spells, in UTC."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None and moment.tzinfo is not None:
            if moment.year not in _YEARS:  # near the ends of the calendar an offset would overflow
                self.fail(f"{value!r} is too far away; expected a year from {_YEARS[0]} to {_YEARS[-1]}", param, ctx)
            return moment.astimezone(UTC)
        if moment is not None:
            self.fail(f"{value!r} has no offset; write it as in {_EXAMPLE}", param, ctx)
        age = _age(value) if self._ago else None
        if age is None:
            expected = f"{_EXAMPLE}, or an age such as 1h" if self._ago else _EXAMPLE
            self.fail(f"{value!r} is no time; expected one such as {expected}", param, ctx)
        return datetime.now(UTC) - age


class Pace(click.ParamType[timedelta]):
    """A rate written as in the configuration, `10/s`; its value is the time between two."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time between two at the rate that `value` spells."""
        if isinstance(value, timedelta):
            return value
        from ..policies.rate import Rate

        try:
            rate = Rate.parse(value)
        except ValueError as error:
            self.fail(f"{error}, got {value!r}", param, ctx)
        return rate.per / rate.count


def _age(value: str) -> timedelta | None:
    try:
        return DURATION.convert(value, None, None)
    except click.BadParameter:
        return None


DURATION = Duration()
MOMENT = Moment()
SINCE = Moment(ago=True)
RATE = Pace()


def content_of(data: str) -> bytes:
    """Return what `--data` means: the text itself, of `@FILE` the content of a file, of `-` standard input."""
    if data in ("-", "@-"):
        return _limited(sys.stdin.buffer)
    if not data.startswith("@"):
        return data.encode(errors="surrogateescape")
    try:
        with open(data[1:], "rb") as file:
            return _limited(file)
    except OSError as error:
        raise click.BadParameter(f"cannot read {data[1:]}: {error.strerror}", param_hint="--data") from error


def _limited(file: BinaryIO) -> bytes:
    """Read to the end, or up to the size limit of an event."""
    from ..event import MAX_DATA_BYTES

    content = file.read(MAX_DATA_BYTES + 1)
    if len(content) > MAX_DATA_BYTES:
        raise click.BadParameter(f"more than {MAX_DATA_BYTES} bytes, which is all that is taken", param_hint="--data")
    return content
