"""The sockets that the HTTP interface listens on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from ..config.api import Api
from ..errors import ListenError

__all__ = ["address_of", "listen", "unlink"]

_BACKLOG = 2048
_MODE = 0o660  # of a unix socket: its user and group may connect


async def listen(options: Api) -> list[socket.socket]:
    """
    Return sockets that listen where `options.listen` says: one for each address of the host.

    Raises:
        ListenError: the address is in use, not of this machine, or cannot be bound.
    """
    place = options.place
    if place.path is not None:
        return [_on_path(place.path)]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ListenError(f"api.listen: {place.host!r} has no address here: {error.strerror or error}") from error
    if place.port == 0:
        found = found[:1]  # with port 0 each address would get a port of its own
    made: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            made.append(_on_address(family, address, options))
    except OSError as error:
        for each in made:
            each.close()
        raise ListenError(f"api.listen: {options.listen} {_reason(error)}") from error
    return made


def address_of(listening: socket.socket, *, tls: bool) -> str:
    """Return where a socket listens, as a URL or `unix:/path`."""
    name = listening.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"{'https' if tls else 'http'}://{host}:{name[1]}"


def unlink(path: Path, inode: int) -> None:
    """Remove our unix socket, unless another process has replaced it."""
    with contextlib.suppress(OSError):
        if path.stat().st_ino == inode:
            path.unlink()


def _on_address(family: int, address: object, options: Api) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if options.reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:  # `[::]` is every address, those of IPv4 included
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(options.place.host != "::"))
        made.setblocking(False)
        made.bind(address)  # type: ignore[arg-type]  # of whatever family it is
        made.listen(_BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _on_path(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        made.setblocking(False)
        made.bind(str(path))
        path.chmod(_MODE)
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise ListenError(f"api.listen: unix:{path} {_reason(error)}") from error
    return made


def _clear(path: Path) -> None:
    """Remove a socket left behind by a process that has ended."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "is there, and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError:  # another process listens on it
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "is taken: another process listens there; stop that, or give api.listen another address"
        case errno.EADDRNOTAVAIL:
            return "is no address of this machine"
        case errno.EACCES | errno.EPERM:
            return "may not be used by this user"
        case errno.ENOENT:
            return "cannot be made: its directory does not exist"
        case errno.EEXIST:
            return "is there already, and is no socket; remove it, or give api.listen another path"
    return f"cannot be listened on: {(error.strerror or str(error)).lower()}"
