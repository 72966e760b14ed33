"""Every error this package raises on purpose.

    RunnerError
    ├── ConfigError          the file, or what it names, is wrong (exit code 78)
    ├── EventError           an event breaks CloudEvents 1.0 or a limit of the bus
    │   ├── EventConflict        same source and id, other content
    │   ├── EventTooLarge        it is larger than the bus accepts, or a batch has too many
    │   ├── FormatUnsupported    a message is in an unsupported event format or mode
    │   └── SchemaViolation      its data does not fit the schema of its type
    ├── StorageError         the store refused, or holds something unexpected
    │   ├── StorageRefused       it refuses the content of one row; trying again does not help
    │   ├── StorageUnavailable   it cannot be reached; trying again is safe (exit code 69 at start)
    │   │   └── StorageLocked        another session has locked the rows; nothing was written
    │   ├── ForeignDeployment    the tables belong to another deployment (exit code 78)
    │   └── SchemaMismatch       the tables are missing, older or newer than this version
    ├── ListenError          the address of the HTTP interface is in use, or cannot be bound
    ├── StrategyError        a wake-up path failed; costs latency, never an event
    ├── SinkError            a sink cannot be built or started
    ├── NotFound             no object has the given name or number
    └── StateConflict        the state of the object does not allow the operation
        └── ChangedMeanwhile     the object is not in the state the change requires

A foreign exception is mapped where it enters (`raise ... from error`), and its text
is never shown where it could carry a DSN or a payload.
"""

from __future__ import annotations

import os
import re
from copy import copy
from pathlib import Path
from typing import Self

__all__ = [
    "ChangedMeanwhile",
    "ConfigError",
    "EventConflict",
    "EventError",
    "EventTooLarge",
    "ForeignDeployment",
    "FormatUnsupported",
    "ListenError",
    "NotFound",
    "RunnerError",
    "SchemaMismatch",
    "SchemaViolation",
    "SinkError",
    "StateConflict",
    "StorageError",
    "StorageLocked",
    "StorageRefused",
    "StorageUnavailable",
    "StrategyError",
    "described",
    "readable",
]

_ERRNO = re.compile(r"\[Errno (-?\d+)\] (Connect call failed \([^)]*\)|[A-Z][a-z ]+)")


class RunnerError(Exception):
    """The base of every error that this package raises on purpose."""

    exit_code = 1


class ConfigError(RunnerError):
    """The configuration is wrong; one line per fault, each with its place in the file."""

    exit_code = 78

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
        self.files: tuple[Path, ...] = ()  # the files that were read, if any


class EventError(RunnerError, ValueError):
    """
    An event breaks CloudEvents 1.0 or a limit of the bus.

    Attributes:
        attribute: the name of the attribute at fault; None if there is none, or the whole event is at fault.
        index: the index in the batch of the event at fault, from 0; None outside a batch.
    """

    def __init__(self, message: str, *, attribute: str | None = None, index: int | None = None) -> None:
        super().__init__(message)
        self.attribute = attribute
        self.index = index

    def in_batch(self, index: int, count: int) -> Self:
        """Return the same error as that of one event of several."""
        error = copy(self)
        error.args = (f"event {index + 1} of {count}: {self}",)
        error.index = index
        return error

    def among(self, index: int, count: int) -> Self:
        """Return the same error, as that of one event of several if there are several."""
        return self.in_batch(index, count) if count > 1 else self


class EventConflict(EventError):
    """An event with the same source and id, but other content, is already recorded."""


class EventTooLarge(EventError):
    """An event, or one of its attributes, is larger than the bus accepts; or a batch has too many events."""


class FormatUnsupported(EventError):
    """A message is in an unsupported event format or mode."""


class SchemaViolation(EventError):
    """
    The data of an event does not fit the schema of its type.

    Attributes:
        pointer: to the part that does not (RFC 6901); empty for the whole.
    """

    def __init__(self, message: str, *, pointer: str = "", attribute: str = "data") -> None:
        super().__init__(message, attribute=attribute)
        self.pointer = pointer


class StorageError(RunnerError):
    """
    The store refused, or holds something unexpected.

    Attributes:
        logged: whether the log already reports it as "database lost".
    """

    logged = False


class StorageRefused(StorageError):
    """The store refuses the content of a row; the same write would be refused again. Nothing took effect."""


class StorageUnavailable(StorageError):
    """The store cannot be reached. Whether the last write took effect is unknown; repeating it is safe."""

    exit_code = 69


class StorageLocked(StorageUnavailable):
    """Another session has locked the rows for too long, or in another order. Nothing took effect."""


class ForeignDeployment(StorageError):
    """The tables belong to another deployment."""

    exit_code = 78


class SchemaMismatch(StorageError):
    """The tables are missing, older or newer than this version of the runner."""


class ListenError(RunnerError):
    """The address of the HTTP interface is in use, or cannot be bound."""


class StrategyError(RunnerError):
    """A wake-up path failed. It costs latency, never an event."""


class SinkError(RunnerError):
    """A sink cannot be built or started."""


class NotFound(RunnerError):
    """The requested object does not exist."""


class StateConflict(RunnerError):
    """The state of the requested object does not allow the operation."""


class ChangedMeanwhile(StateConflict):
    """The requested object is not, or no longer, in the state that the change requires. Nothing was changed."""


def readable(text: str) -> str:
    """Return the text with operating system errors in plain words: `connection refused`."""
    return _ERRNO.sub(lambda found: (os.strerror(int(found[1])) if int(found[1]) > 0 else found[2]).lower(), text)


def described(error: BaseException) -> str:
    """Return the type and the text of any exception."""
    return f"{type(error).__name__}: {text_of(error)}".rstrip(": ")


def text_of(error: BaseException) -> str:
    """Return the text of any exception; empty if its `str()` fails."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""
