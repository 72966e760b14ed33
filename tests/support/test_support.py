"""The servers of the tests keep their promises; without that, no other test means anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import asyncpg
import nats
import psutil
import pytest

from .eventually import eventually
from .load import slowness
from .nats import NatsServer
from .postgres import PostgresServer
from .process import RunnerProcess, environment, run_cli, run_python
from .proxy import Proxy
from .server import free_port


async def _select_one(dsn: str) -> int:
    connection = await asyncpg.connect(dsn, timeout=5)
    try:
        return int(await connection.fetchval("SELECT 1"))
    finally:
        await connection.close()


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_eventually_returns_what_the_check_returns_and_says_what_it_saw() -> None:
    answers = iter([0, 0, 7])
    assert await eventually(lambda: next(answers)) == 7
    with pytest.raises(AssertionError, match="last seen: 0"):
        await eventually(lambda: 0, timeout=0.02)


def test_a_database_is_fresh(postgres: PostgresServer, postgres_dsn: str) -> None:
    assert postgres.psql("SELECT count(*) FROM pg_stat_user_tables", postgres_dsn) == "0"
    assert postgres.psql("SHOW server_version").startswith(f"{postgres.version}.")


def test_psql_reports_what_the_server_refused(postgres: PostgresServer) -> None:
    with pytest.raises(RuntimeError, match="division by zero"):
        postgres.psql("SELECT 1/0")


@pytest.mark.parametrize("version", [16, 18])
async def test_postgres_keeps_committed_data_and_its_port_when_killed(
    version: int, make_postgres: Callable[..., PostgresServer]
) -> None:
    server = make_postgres(version)
    dsn = server.create_database()
    server.psql("CREATE TABLE t AS SELECT 1 AS one", dsn)
    server.kill()
    with pytest.raises(OSError):
        await _select_one(dsn)
    server.start()
    assert await _select_one(dsn) == 1
    assert server.psql("SELECT one FROM t", dsn) == "1"


async def test_nats_keeps_its_port_over_a_restart(make_nats_server: Callable[..., NatsServer]) -> None:
    server = make_nats_server('authorization { user: "a", password: "b" }')
    for _ in range(2):
        client = await nats.connect(server.url, user="a", password="b", allow_reconnect=False)
        await client.flush()
        await client.close()
        server.kill()
        assert not server.running
        server.start()


async def test_jetstream_is_on_when_asked_for(nats_server: NatsServer) -> None:
    client = await nats.connect(nats_server.url)
    assert (await client.jetstream().account_info()).streams >= 0
    await client.close()


async def test_a_blackhole_holds_bytes_and_lets_them_through_later(postgres: PostgresServer) -> None:
    async with Proxy(postgres.dsn()) as proxy:
        connection = await asyncpg.connect(proxy.url, timeout=5)
        await proxy.set_mode("blackhole")
        answer = asyncio.ensure_future(connection.fetchval("SELECT 1"))
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done
        await proxy.set_mode("pass")
        assert await answer == 1
        await connection.close()


async def test_refuse_and_reset_end_connections_and_pass_accepts_again(postgres: PostgresServer) -> None:
    async with Proxy(postgres.dsn()) as proxy:
        for mode, error in (("refuse", ConnectionRefusedError), ("reset", OSError)):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            await eventually(lambda: proxy.connections == 1)
            await proxy.set_mode(mode)  # type: ignore[arg-type]  # both are modes
            try:
                assert await asyncio.wait_for(reader.read(), 5) == b""
            except ConnectionResetError:
                assert mode == "reset"
            writer.close()
            with pytest.raises((error, asyncpg.PostgresError)):
                await asyncpg.connect(proxy.url, timeout=5)
            await proxy.set_mode("pass")
            assert await _select_one(proxy.url) == 1
            await eventually(lambda: proxy.connections == 0)


@pytest.mark.parametrize(("mode", "seconds"), [("pass", 0.0), ("slow", 0.1), ("trickle", 0.1)])
async def test_a_proxy_slows_down(mode: str, seconds: float) -> None:
    async with _echo(latency=0.05) as proxy:
        await proxy.set_mode(mode)  # type: ignore[arg-type]  # one of the modes
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        began = asyncio.get_running_loop().time()
        writer.write(b"hi")
        assert await reader.readexactly(2) == b"hi"
        assert asyncio.get_running_loop().time() - began >= seconds
        writer.close()


async def test_a_proxy_swallows_answers_and_resets_what_has_a_hole() -> None:
    async with _echo() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        await proxy.set_mode("mute")
        writer.write(b"hello")
        await eventually(lambda: proxy.dropped == 5)
        await proxy.set_mode("pass")
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert proxy.resets == 1
        writer.close()


async def test_a_proxy_cuts_after_so_many_bytes() -> None:
    async with _echo(after=5) as proxy:
        await proxy.set_mode("cut")
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"!")
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert proxy.resets == 1
        writer.close()


@contextlib.asynccontextmanager
async def _echo(**options: float) -> AsyncIterator[Proxy]:
    """Yield a proxy before a server that says what it hears; return when all its connections are closed."""
    ended: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ended.append(task)
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        async with Proxy(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}", **options) as proxy:  # type: ignore[arg-type]  # forwarded as given
            yield proxy
        await asyncio.gather(*ended)


async def test_a_killed_test_run_leaves_no_server() -> None:
    script = (
        "import os, signal\n"
        "from tests.support.nats import NatsServer\n"
        "server = NatsServer()\n"
        "server.start()\n"
        "print(server.port, server.directory, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python(script)
    assert done.returncode == -signal.SIGKILL, done.stderr
    port, directory = done.stdout.split()
    await eventually(lambda: _refuses(int(port)), timeout=10)
    shutil.rmtree(directory)


def test_a_runner_process_gives_its_lines_and_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.process.COMMAND", (sys.executable, "-c"))
    script = "import sys, time; print('ready 1'); print('no', file=sys.stderr); time.sleep(60)"
    with RunnerProcess(script) as runner:
        assert runner.wait_for_line(r"ready \d") == "ready 1"
        assert runner.returncode is None
        with pytest.raises(AssertionError, match="no line matches"):
            runner.wait_for_line("never", timeout=0.05)
        assert runner.stop() == -signal.SIGTERM
    assert runner.stderr == ["no"]
    done = run_cli("print(input()); raise SystemExit(3)", input="hello\n")
    assert (done.returncode, done.stdout) == (3, "hello\n")


def test_servers_get_ports_that_outgoing_connections_never_take(nats_server: NatsServer) -> None:
    assert nats_server.port < 32_000
    with socket.socket() as probe, pytest.raises(OSError):
        probe.bind(("127.0.0.1", nats_server.port))


def test_a_port_is_found_once() -> None:
    assert len({free_port() for _ in range(500)}) == 500


# --- load ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not say")
async def test_two_that_share_a_processor_are_slow() -> None:
    cpu = min(os.sched_getaffinity(0))
    loop = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    rivals = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(2)]
    try:
        await eventually(lambda: slowness(rival.pid for rival in rivals) > 1.5)
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert slowness(rival.pid for rival in rivals) == 1.0


def test_a_command_runs_beside_busy_processes_until_it_fails(tmp_path: Path) -> None:
    # The second run fails; each notes the processes whose parent is its own.
    script = (
        "import os, pathlib, sys, psutil\n"
        "beside = [each.pid for each in psutil.Process(os.getppid()).children() if each.pid != os.getpid()]\n"
        "with open('beside', 'a') as file: print(*beside, file=file)\n"
        "sys.exit(7 if len(pathlib.Path('beside').read_text().splitlines()) == 2 else 0)\n"
    )
    command = ["-m", "tests.support.busy", "--loops", "2", "--runs", "3", sys.executable, "-c", script]
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment(None), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 7, done.stderr
    passed, failed = done.stdout.splitlines()
    assert passed.startswith("run 1 of 3 beside 2 busy processes")
    assert " passed: " in passed
    assert " failed (exit code 7): " in failed
    first, second = [line.split() for line in (tmp_path / "beside").read_text().splitlines()]
    assert (len(first), second) == (2, first)
    assert [pid for pid in map(int, first) if psutil.pid_exists(pid)] == []


async def test_busy_processes_end_with_what_started_them() -> None:
    script = (
        "import os, signal\n"
        "from tests.support.busy import busy\n"
        "with busy(2) as loops:\n"
        "    print(*loops, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = run_python(script)
    assert done.returncode == -signal.SIGKILL, done.stderr
    loops = [int(pid) for pid in done.stdout.split()]
    assert len(loops) == 2
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in loops))
