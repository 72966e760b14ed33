"""Bodies that are too large cost a server no memory, whatever they say of their length: FI-43."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.eventually import PATIENCE
from tests.support.process import RunnerProcess
from tests.support.server import HOST, free_port

MIB = 2**20
GROWTH = 4 * MIB
PIECE = b"x" * MIB
FILE = """\
deployment_id: shop
storage: {{dsn: "sqlite:///runner.db"}}
api: {{listen: "127.0.0.1:{port}"}}
worker: {{enabled: false}}
"""

# The length that is claimed, and how much comes; None is chunked.
WAYS: dict[str, tuple[int | None, int]] = {
    "as long as it says": (100 * MIB, 100 * MIB),
    "in chunks": (None, 100 * MIB),
    "longer than it says": (10, 100 * MIB),
    "longer than the limit, which it says": (MIB, 100 * MIB),
    "shorter than it says": (100 * MIB, 10),
    "one byte too long": (MIB + 1, MIB + 1),
    "one byte too long, in chunks": (None, MIB + 1),
}


class Server:
    """A process that serves, and how much memory it has taken at most."""

    def __init__(self, process: RunnerProcess, port: int) -> None:
        self._about = Path(f"/proc/{process.pid}")
        self._port = port
        self._ids = iter(range(10_000))
        self.memory = psutil.Process(process.pid)

    def send(self, claimed: int | None, size: int) -> list[int]:
        """Post `size` bytes, as far as they are taken; return the statuses that were answered."""
        head = f"POST /events HTTP/1.1\r\nhost: {HOST}\r\nce-specversion: 1.0\r\nce-type: a\r\nce-source: /s\r\n"
        head += f"ce-id: {next(self._ids)}\r\nconnection: close\r\n"
        head += "transfer-encoding: chunked\r\n\r\n" if claimed is None else f"content-length: {claimed}\r\n\r\n"
        with socket.create_connection((HOST, self._port), timeout=PATIENCE) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(head.encode())
                for piece in _pieces(size):
                    connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if claimed is None else piece)
                if claimed is None:
                    connection.sendall(b"0\r\n\r\n")
            answer = b""
            with contextlib.suppress(OSError):
                while more := connection.recv(65_536):
                    answer += more
        return [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]]

    def peak(self) -> int:
        """Return the most memory it has taken since `watch()`, in bytes."""
        [line] = [each for each in (self._about / "status").read_text().splitlines() if each.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    def watch(self) -> int:
        """Measure from now on; return how much memory it takes now."""
        try:
            (self._about / "clear_refs").write_text("5")  # proc(5): the peak becomes what it is now
        except OSError as error:
            pytest.skip(f"the peak of a process cannot be reset here: {error}")
        return int(self.memory.memory_info().rss)


def _pieces(size: int) -> Iterator[bytes]:
    for begun in range(0, size, MIB):
        yield PIECE[: size - begun]


def test_what_is_too_large_is_refused_before_it_is_buffered(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "runner.yaml").write_text(FILE.format(port=port))
    with RunnerProcess("start", "-c", "runner.yaml", cwd=tmp_path) as process:
        process.wait_for_line("listening")
        process.wait_for_line("started")
        server = Server(process, port)
        for size in (0, 65_536, MIB - 1, MIB) * 2:  # what it takes for good, it takes now
            for claimed in (size, None):
                assert server.send(claimed, size) == [202], (claimed, size)
        server.send(MIB + 1, MIB + 1)
        before = server.watch()
        answers = {name: server.send(*way) for name, way in WAYS.items()}
        grown = server.peak() - before
        print(f"\ngrown by {grown / MIB:.1f} MiB: {answers}")
        assert grown <= GROWTH, f"{grown / MIB:.1f} MiB"
        for name in ("longer than it says", "longer than the limit, which it says"):
            assert answers.pop(name)[0] == 202  # what was claimed is an event; the rest is no request
        assert set(map(tuple, answers.values())) == {(413,)}
        assert server.send(65_536, 65_536) == [202]
