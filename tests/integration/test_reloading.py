"""Reloads at bad moments, and of files that the configuration only names."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from runner import Event, load
from runner.errors import ConfigError
from runner.service.vitals import Phase
from tests.support.eventually import eventually
from tests.support.proxy import Proxy
from tests.support.receivers import receiver

from .buses import Bus, Gate

TLS = Path(__file__).parent / "tls"
OPEN = "api: {listen: '127.0.0.1:0'}\nsinks: {out: stdout}\n"
ANOTHER = OPEN + "subscriptions: [{name: another, types: [b], sink: out}]\n"


async def test_a_process_that_drains_takes_no_other_file_and_ends_as_it_would(tables_file: str, tmp_path: Path) -> None:
    bus, gate = Bus(tmp_path, tables_file), Gate()
    runner = load(bus.write(OPEN))
    runner.subscribe("slow", gate)
    await runner.start()
    await runner.publish(Event.new("a", source="/s", id="1"))
    await eventually(lambda: gate.seen)
    stopping = asyncio.create_task(runner.stop())
    await eventually(lambda: runner._vitals.phase is Phase.DRAINING)
    bus.write(ANOTHER)
    digest = runner.reloading.state.digest
    runner.reloading.ask("signal")
    done = await runner.reloading.reload("http")
    assert (done.outcome, done.reason, done.files) == ("failed", "not-running", ())
    assert runner.reloading.state.digest == digest
    gate.opened.set()
    await stopping
    assert (gate.ids, gate.done) == (["1"], 1)
    await bus.settled(delivered=1)
    await bus.close()


async def test_a_signal_that_comes_with_a_write_is_reported_although_nothing_changed(
    tables_file: str, tmp_path: Path
) -> None:
    """A supervisor waits for the result of its signal; a watch that finds the same file reports none."""
    bus = Bus(tmp_path, tables_file)
    async with load(bus.write(OPEN)) as runner:
        runner.reloading.ask("signal")
        runner.reloading.ask("watch")
        await eventually(lambda: runner.reloading.state.last)
        assert runner.reloading.state.last is not None
        assert (runner.reloading.state.last.cause, runner.reloading.counts["reloaded"]) == ("signal", 1)
    await bus.close()


async def test_a_database_that_is_away_is_waited_for_and_the_old_file_stays_in_use(
    tables_dsn: str, tmp_path: Path
) -> None:
    async with Proxy(tables_dsn) as way:
        bus, gate = Bus(tmp_path, way.url), Gate()
        gate.opened.set()
        runner = load(bus.write(OPEN))
        runner.subscribe("kept", gate, types=["a"])
        async with runner:
            digest = runner.reloading.state.digest
            await way.set_mode("refuse")
            bus.write(ANOTHER)
            done = await runner.reloading.reload("http")
            assert (done.outcome, done.reason) == ("failed", "store")
            assert runner.reloading.state.kept
            runner.reloading.ask("signal")
            await eventually(lambda: runner.reloading.counts["failed"] >= 3)  # it is tried again without being asked
            assert runner.reloading.state.digest == digest
            assert set(runner._sinks) == {"function:kept", "out"}
            await way.set_mode("pass")
            await eventually(lambda: runner.reloading.counts["reloaded"] == 1)
            now = runner.reloading.state
            assert (now.kept, now.digest == digest) == (False, False)
            await runner.publish_many([Event.new(type, source="/s") for type in "ab"])
            await eventually(lambda: bus.reached(delivered=2))
            assert len(gate.seen) == 1
        await bus.close()


def change(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


async def test_subscriptions_of_a_program_have_the_retries_and_the_breaker_of_the_file(
    tables_file: str, tmp_path: Path
) -> None:
    bus, gate = Bus(tmp_path, tables_file), Gate()
    file = Path(bus.write(OPEN + "breaker: off\n"))
    change(file, "retry: {", "retry: {max_attempts: 7, ")
    runner = load(file)
    runner.subscribe("function", gate)
    runner.subscribe("own", gate, retry={"max_attempts": 2}, breaker={"failures": 3})

    async def policies() -> dict[str, tuple[int, int | None]]:
        known = [each.subscription for each, _, _ in await runner._storage.records.registered()]
        return {
            each.name: (each.retry.max_attempts, None if each.breaker is None else each.breaker.failures)
            for each in known
        }

    async with runner:
        await runner.subscriptions.put("put", {"sink": "out"})
        assert await policies() == {"function": (7, None), "own": (2, 3), "put": (7, None)}
        change(file, "max_attempts: 7", "max_attempts: 9")
        change(file, "breaker: off", "")
        assert (await runner.reloading.reload("program")).outcome == "reloaded"
        assert await policies() == {"function": (9, 20), "own": (2, 3), "put": (7, None)}
        await runner.subscriptions.put("put", {"sink": "out"})
        assert (await policies())["put"] == (9, 20)
    await bus.close()


def certificate(name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((TLS / f"{name}.crt").read_text())


def place(directory: Path, certificate: str, key: str) -> None:
    shutil.copy(TLS / f"{certificate}.crt", directory / "own.crt")
    shutil.copy(TLS / f"{key}.key", directory / "own.key")


async def presented(url: str) -> bytes | None:
    """Return the certificate that a listener presents."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port, ssl=context)
    session: ssl.SSLObject = writer.get_extra_info("ssl_object")
    writer.close()
    return session.getpeercert(binary_form=True)


async def test_certificates_that_are_replaced_are_presented_from_the_reload_on(
    tables_file: str, tmp_path: Path
) -> None:
    seen: list[bytes | None] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        seen.append(request.transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        return web.Response()

    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trusting.load_cert_chain(TLS / "server.crt", TLS / "server.key")
    for name in ("server", "other"):
        trusting.load_verify_locations(TLS / f"{name}.crt")
    trusting.verify_mode = ssl.CERT_REQUIRED
    place(tmp_path, "server", "server")
    shutil.copy(TLS / "server.crt", tmp_path / "ca.crt")
    bus = Bus(tmp_path, tables_file)
    async with receiver(answer, ssl_context=trusting) as url:
        more = "api: {listen: '127.0.0.1:0', tls: {cert: own.crt, key: own.key}}\n"
        more += f"sinks: {{hook: {{webhook: {{url: '{url}', tls: {{ca: ca.crt, cert: own.crt, key: own.key}}}}}}}}\n"
        async with load(bus.write(more + "subscriptions: [{name: hook, sink: hook}]\n")) as runner:
            [door] = runner.addresses
            expected = []
            for certificates, key, now in (
                ("server", "server", "server"),
                ("other", "other", "other"),
                ("server", "other", "other"),  # a key of another certificate changes nothing
                ("server", "locked", "other"),
                ("server", "server", "server"),
            ):
                place(tmp_path, certificates, key)
                done = await runner.reloading.reload("signal")
                assert (done.outcome == "reloaded") == (certificates == key), done
                assert await presented(door) == certificate(now)
                await runner.publish(Event.new("a", source="/s"))
                expected.append(certificate(now))
                await eventually(lambda: seen == expected)
    place(tmp_path, "server", "other")
    with pytest.raises(
        ConfigError, match=r"runner\.yaml:5:\d+: api\.tls: key: .*own\.key cannot be used: it is not the"
    ):
        load(tmp_path / "runner.yaml")
    await bus.close()
