"""The surroundings of a process: its log, its open files, and the files that hold its secrets."""

from __future__ import annotations

import os
import resource
import select
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from ..config import Config, advice
from ..log.redaction import redacted
from .disk import free_space, kind_of
from .postgres import size
from .thresholds import Thresholds
from .verdict import Finding, fault, fine, warning

__all__ = ["judge_config", "judge_files", "judge_log", "judge_open_files", "judge_tokens"]

_PRIVATE = ("tmpfs", "ramfs")  # containers keep secrets there, readable for all of their users
_SPARE = 64  # open files other than connections: modules, sockets of the API, the log


def judge_config(config: Config) -> Iterator[Finding]:
    """Yield what is odd in a valid file."""
    odd = advice(config)
    for each in odd:
        place, _, rest = each.partition(": ")
        what, _, cure = rest.rpartition("; ")
        yield warning("configuration", "odd", f"{place}: {what or rest}", cure if what else "see docs/configuration.md")
    if not odd:
        parts = {"sink": config.sinks, "subscription": config.subscriptions, "schedule": config.schedules}
        counts = ", ".join(f"{len(each)} {name}{'' if len(each) == 1 else 's'}" for name, each in parts.items())
        yield fine("configuration", f"{config.file}: deployment {config.deployment_id}, {counts}")


def judge_files(config: Config) -> Iterator[Finding]:
    """Yield whether others on this machine can read the secrets, or change what is run."""
    found, modes = [], {}
    for path in dict.fromkeys((*config.files, *_keys(config))):
        try:
            mode, text = path.stat().st_mode, path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # reported with the configuration, or where it is used
        modes[path] = mode & 0o777
        if mode & stat.S_IWOTH:
            measured = f"{path} can be changed by every user of this machine (mode {modes[path]:04o})"
            found.append(fault("permissions", "writable", measured, f"chmod o-w {path}", str(path)))
        if mode & stat.S_IROTH and (line := _secret_line(config, path, text)) and kind_of(path) not in _PRIVATE:
            measured = f"every user of this machine can read the secret in {path}:{line} (mode {modes[path]:04o})"
            cure = f"chmod 600 {path}, or keep the secret elsewhere: ${{VAR}} or ${{file:/path}}"
            found.append(warning("permissions", "readable", measured, cure, str(path)))
    yield from found
    if modes and not found:
        first, *more = modes
        others = f", and {len(more)} file{'' if len(more) == 1 else 's'} it names" if more else ""
        yield fine("permissions", f"{first} has mode {modes[first]:04o}{others}")


def _secret_line(config: Config, path: Path, text: str) -> int:
    """Return the number of the first line that holds a secret; 0 if none does."""
    if path not in config.files:
        return 1  # a key, or a file of credentials
    return next((number for number, line in enumerate(text.splitlines(), 1) if redacted(line) != line), 0)


def _keys(config: Config) -> Iterator[Path]:
    """Yield the files of private keys and credentials."""
    options = [each.options for each in (*config.strategies, *config.sinks.values())]
    named = [getattr(each, "credentials", None) for each in options]
    named += [getattr(getattr(each, "tls", None), "key", None) for each in (*options, config.api)]
    named += [dsn.sslkey for _, dsn in config.dsns()]
    yield from (each for each in named if isinstance(each, Path))


def judge_log(descriptor: int, limits: Thresholds) -> Iterator[Finding]:
    """Yield whether a log on this descriptor, that of this process, would be written."""
    cure = "mend what reads it, or send it elsewhere; deliveries go on meanwhile, but the log is lost"
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        yield warning("log", "closed", "standard error is closed: nothing is logged", "start the process with 2>FILE")
        return
    if stat.S_ISREG(mode):
        yield from _judge_log_file(descriptor, limits)
        return
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    events = dict(poll.poll(1000)).get(descriptor, 0)
    if events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
        yield warning("log", "unread", "the reader of standard error has gone", cure)
    elif not events & select.POLLOUT:
        yield warning("log", "blocked", "standard error is full, and its reader reads nothing: the log blocks", cure)
    elif stat.S_ISCHR(mode) and not os.isatty(descriptor) and (reason := _unwritable(descriptor)):
        yield fault("log", "unwritable", f"standard error cannot be written: {reason}", cure)
    else:
        kind = "a terminal" if os.isatty(descriptor) else "a pipe or socket" if not stat.S_ISCHR(mode) else "a device"
        yield fine("log", f"standard error is {kind}, and takes lines")


def _judge_log_file(descriptor: int, limits: Thresholds) -> Iterator[Finding]:
    space = free_space(Path(f"/proc/self/fd/{descriptor}"))
    if space is not None and space[0] < limits.free:
        measured = f"standard error is a file on a disk with {size(space[0])} free: the log will be lost"
        yield fault("log", "disk_full", measured, "make room, or send the log elsewhere")
    else:
        yield fine("log", "standard error is a file" + ("" if space is None else f", with {size(space[0])} free"))


def _unwritable(descriptor: int) -> str:
    try:
        os.write(descriptor, b"\n")
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return ""


def judge_open_files(config: Config) -> Iterator[Finding]:
    """Yield whether the limit of open files suffices at full load."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = (config.api.limits.connections if config.api is not None else None) or 0
    need = config.worker.concurrency + config.storage.pool + connections + _SPARE
    if soft != resource.RLIM_INFINITY and soft < need:
        measured = (
            f"{soft} may be open, and {need} can be needed (worker.concurrency, storage.pool, api.limits.connections)"
        )
        cure = "raise the limit (LimitNOFILE=, ulimit -n), or lower worker.concurrency"
        yield warning("open files", "open_files", measured, cure)
    else:
        yield fine(
            "open files", f"{soft if soft != resource.RLIM_INFINITY else 'any number'} may be open, {need} needed"
        )


def judge_tokens(config: Config, limits: Thresholds) -> Iterator[Finding]:
    """Yield which tokens of the API have ended, or soon will."""
    if config.api is None or not config.api.tokens:
        return
    now, found = datetime.now(UTC), []
    for name in dict.fromkeys(each.name for each in config.api.tokens):
        ends = [each.expires for each in config.api.tokens if each.name == name]
        last = None if None in ends else max(end for end in ends if end is not None)
        if last is None or last - now > limits.expiry:
            continue
        how = "ended" if last <= now else "ends"
        measured = f"the last token of {name!r} {how} at {last:%Y-%m-%dT%H:%M:%SZ}"
        cure = "add a second token of that name to api.tokens, and give it to its user before the old one ends"
        found.append(warning("tokens", "token_ends", measured, cure, name))
    yield from found
    if not found:
        yield fine("tokens", f"{len(config.api.tokens)}, none of them about to end")
