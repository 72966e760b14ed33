"""Files that hold one value each: passwords, tokens, keys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["read_value"]

_MAX_BYTES = 64 * 1024
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)  # opening a pipe without a writer must not block


def read_value(path: Path) -> str:
    """
    Return the value in a file, without the byte order mark and the one line end that editors add.

    Never waits for a pipe, and never reads more than 64 KiB.

    Raises:
        ValueError: there is no value; the message continues a sentence that names the file, and repeats nothing of its
            content.
    """
    content = _content(path)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"is larger than {_MAX_BYTES // 1024} KiB")
    if content.startswith(_UTF_16):
        raise ValueError("is UTF-16 text; save it as UTF-8")
    if b"\0" in content:
        raise ValueError("holds a NUL byte; expected text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ValueError("is empty")
    return text


def _content(path: Path) -> bytes:
    """Return the beginning of a regular file, up to one byte more than allowed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _NON_BLOCKING)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("cannot be read: no valid path") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("cannot be read: Is a directory")
        if not stat.S_ISREG(mode):
            raise ValueError("is a pipe or a device; expected a regular file")
        return os.read(descriptor, _MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
