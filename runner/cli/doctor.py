"""`runner doctor`: examine a deployment and everything it stands on."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ConfigError
from ..log.redaction import redacted
from ..log.terminal import printable
from .options import DURATION, config_option, json_option, load
from .output import echo, print_json, tell

if TYPE_CHECKING:
    from ..config import Config
    from ..doctor.verdict import Finding

__all__ = ["doctor"]

_COLORS = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command()
@config_option
@click.option(
    "--timeout",
    type=DURATION,
    default="5s",
    show_default=True,
    metavar="DURATION",
    help="Time for each check; one that takes longer is a fault.",
)
@click.option("--allow-warnings", is_flag=True, help="Exit with 0 if there are warnings but no faults.")
@json_option
def doctor(path: Path, timeout: timedelta, allow_warnings: bool, as_json: bool) -> int:
    """Examine the deployment and everything it stands on; say what is wrong, and what to do about it.

    One line for each check: ok, warning or fault, what was measured, and the cure. Nothing is changed, and no
    worker is woken. Run it as the service is run (same user, environment and machine), because rights, clocks
    and logs are those of the process.

    \b
    0   healthy
    1   at least one warning or fault
    69  the database cannot be reached
    78  the configuration is wrong, or the tables belong to another deployment

    \b
    Examples:
      runner doctor
      runner doctor -c prod.yaml --timeout 10s
      runner doctor --json
      runner doctor --allow-warnings
    """
    try:
        config = load(path, level="error", imports=True)
    except ConfigError as error:
        return _invalid(error, as_json)
    return asyncio.run(_doctor(config, timeout, allow_warnings, as_json))


async def _doctor(config: Config, timeout: timedelta, allow_warnings: bool, as_json: bool) -> int:
    from ..doctor.examination import examine
    from ..doctor.thresholds import Thresholds
    from ..doctor.verdict import Level, exit_code, findings_json, skipped

    found = []
    async for finding in examine(config, Thresholds(budget=timeout.total_seconds())):
        found.append(finding)
        if not as_json and finding.level is not Level.SKIPPED:
            _print(finding)
    if as_json:
        print_json(findings_json(found, allow_warnings=allow_warnings))
        return exit_code(found, allow_warnings=allow_warnings)
    for why in dict.fromkeys(each.measured for each in found if each.level is Level.SKIPPED):
        names = [each.check for each in found if each.level is Level.SKIPPED and each.measured == why]
        _print(skipped(f"{len(names)} checks", f"{', '.join(names)}: {why}"))
    _sum_up(found)
    return exit_code(found, allow_warnings=allow_warnings)


def _invalid(error: ConfigError, as_json: bool) -> int:
    """Print the faults of the file, which keep everything else from being examined."""
    from ..doctor.verdict import exit_code, fault, findings_json

    cure = "correct the file; docs/configuration.md and `runner config schema` have every key"
    found = [fault("configuration", "invalid", each, cure) for each in error.faults]
    if as_json:
        print_json(findings_json(found))
    else:
        for each in found:
            _print(each)
        _sum_up(found)
    return exit_code(found)


def _print(finding: Finding) -> None:
    """Print one finding; on a terminal with its cure on a line of its own."""
    level, check = str(finding.level), finding.check
    measured, cure = (printable(redacted(each)) for each in (finding.measured, finding.cure))
    line = f"{_painted(level)}{check.ljust(14)} {measured}"
    if not cure:
        echo(line)
    elif sys.stdout.isatty():
        echo(f"{line}\n{' ' * 9}{'cure:'.ljust(14)} {cure}")
    else:
        echo(f"{line}; cure: {cure}")


def _painted(level: str) -> str:
    """Return a level in a column of its own, in color on a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return level.ljust(9)
    return click.style(level.ljust(9), fg=_COLORS.get(level), bold=level == "fault", dim=level == "skipped")


def _sum_up(found: list[Finding]) -> None:
    from ..doctor.verdict import Level

    counts = {level: sum(each.level is level for each in found) for level in (Level.FAULT, Level.WARNING)}
    said = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    tell(", ".join(said) or "healthy")
