"""The `runner` command: its verbs, imported on demand, and the mapping of errors to exit codes."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import click

from ..errors import ConfigError, RunnerError, StorageLocked, StorageUnavailable, readable
from ..service.version import __version__
from .output import OutputClosed, drop_output, tell

__all__ = ["PROGRAM", "LazyGroup", "main", "run"]

# Errors of a file that accepts no more output; verbs write to standard output only.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
DONE, FAILED, INTERRUPTED = 0, 1, 130

# verb -> module that holds it under the same name
VERBS = {
    "init": "init",
    "dev": "dev",
    "start": "start",
    "status": "status",
    "top": "top",
    "why": "why",
    "check": "check",
    "config": "configuration",
    "migrate": "migrate",
    "publish": "publish",
    "events": "events",
    "deliveries": "deliveries",
    "subscriptions": "subscriptions",
    "schedules": "schedules",
    "secrets": "secrets",
    "cron": "cron",
    "instances": "instances",
    "audit": "audit",
    "prune": "prune",
    "doctor": "doctor",
    "bench": "bench",
    "completion": "completion",
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name, when they are asked for."""

    def __init__(self, name: str, *, modules: Mapping[str, str], help: str) -> None:
        super().__init__(name, help=help, context_settings={"help_option_names": ["-h", "--help"]})
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of use, not alphabetically."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and return its command."""
        if cmd_name not in self._modules:
            return None
        module = import_module(f".{self._modules[cmd_name]}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; for an unknown one, suggest similar names."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # click suggests only loaded commands, and none is
            raise click.NoSuchCommand(error.command_name, possibilities=self._modules, ctx=ctx) from None


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"runner {__version__}")
        ctx.exit()


PROGRAM = LazyGroup(
    "runner",
    modules=VERBS,
    help="""A durable event bus, built from one YAML file.

    \b
    Examples:
      runner init
      runner start
      runner publish hello.world --data '{"n": 1}'

    The file is given with -c FILE, or else in $RUNNER_CONFIG, or else ./runner.yaml. `runner VERB --help` has examples
    for each verb.
    """,
)
PROGRAM.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_print_version,
        help="Print the version and exit.",
    )
)


def main() -> None:
    """Run the command line of this process, and exit."""
    _open_streams()
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        code = run(sys.argv[1:])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except KeyboardInterrupt:  # before or after `run` catches it
        code = INTERRUPTED
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; print errors on standard error."""
    try:
        _check_encoding(arguments)
        code = PROGRAM.main(list(arguments), prog_name="runner", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _show(error)
        return error.exit_code
    except RunnerError as error:
        _print_error(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (OutputClosed, BrokenPipeError):  # click lets a BrokenPipeError through only from `flush()`
        drop_output()
        return DONE
    except OSError as error:
        if error.errno not in _FULL:
            _print_unexpected(error)
            return FAILED
        tell(f"Error: cannot write to standard output: {error.strerror}")
        drop_output()
        return FAILED
    except Exception as error:
        _print_unexpected(error)
        return FAILED
    return code if isinstance(code, int) else DONE


def _open_streams() -> None:
    """
    Open the standard descriptors that were closed when the process started.

    Otherwise the first file or connection opened would take descriptor 2, and receive what is written to standard
    error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  # until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character unknown to the locale must not raise


def _interrupt(_number: int, _frame: object) -> None:
    """Treat SIGTERM as SIGINT, because process 1 of a container has no default action for it."""
    signal.raise_signal(signal.SIGINT)


def _check_encoding(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for an argument that is not UTF-8."""
    for number, argument in enumerate(arguments, 1):
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise click.UsageError(f"argument {number} is not UTF-8: {argument}") from error


def _show(error: click.ClickException) -> None:
    """Print the fault of the command line, and its usage."""
    shown = io.StringIO()
    error.show(shown)
    tell(shown.getvalue().removesuffix("\n"))


def _print_error(error: RunnerError) -> None:
    """Print an expected failure; the faults of a file name their places themselves."""
    if _debugging():
        tell("".join(traceback.format_exception(error)).rstrip("\n"))
    tell(str(error) if isinstance(error, ConfigError) else f"Error: {readable(str(error))}")
    if isinstance(error, StorageUnavailable) and not isinstance(error, StorageLocked):
        tell("  cure: see that the database runs, and that storage.dsn leads to it: runner doctor")


def _print_unexpected(error: Exception) -> None:
    """Print an unexpected failure in one line, without its text, which could contain a payload or a DSN."""
    if _debugging():
        tell("".join(traceback.format_exception(error)).rstrip("\n"))
        return
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown place"
    tell(f"Error: unexpected {type(error).__name__} at {place}; RUNNER_DEBUG=1 shows the whole traceback")


def _debugging() -> bool:
    return os.environ.get("RUNNER_DEBUG", "") not in ("", "0")
