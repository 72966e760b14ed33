"""A client of nats-py that proves the fate of every message, and sends nothing before encryption."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

from nats import errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import AWAITING_CONTROL_LINE, Parser
from typing_extensions import override

__all__ = ["GuardedClient", "header_block", "honest_cancellation"]

# nats-py passes errors of the server on in lower case. A subject is quoted as by Go's %q.
_NOT_PERMITTED = re.compile(r"permissions violation for publish to (\".*\")")
_REPLY_NOT_PERMITTED = "permissions violation for publish with reply of "
_SUBSCRIPTION_NOT_PERMITTED = "permissions violation for subscription"
_NO_RESPONDERS = b"NATS/1.0 503"  # the status of a message that answers for nobody
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110 §5.6.2
_LINE_BREAK = re.compile(r"[\r\n]")
_RESERVED_REPLY = "_R_.runner"  # a reply subject that the server allows no client to use
_LONGEST = 200  # characters of a server's error that are kept

_LONGEST_LINE = 256 * 1024  # bytes; a greeting names every node of a cluster
_LARGEST_MESSAGE = 64 * 1024 * 1024  # bytes, the most that a server can be told to take
_MOST_PINGS = 100  # a second; a server sends one in two minutes

# Told of a message that the server has taken (None), or why it has not.
_Told = Callable[["errors.Error | None"], None]
# A message: its subject, and the callback for its result.
_Sent = tuple[str, "_Told | None"]


class _Window(list[_Sent]):
    """Messages between two PINGs, each of which a refusal looks at once, however many refusals there are."""

    __slots__ = ("_named", "_refused", "_seen")

    def __init__(self) -> None:
        super().__init__()
        self._named: dict[str, list[_Sent]] = {}  # by the subject as the server spells it
        self._seen = 0  # that are in `_named`
        self._refused = 0  # that a refusal without a name has concerned

    def refused(self, name: str) -> list[_Sent]:
        """Return those to the subject that were not refused before; all such if there are none to the subject."""
        for sent in self[self._seen :]:
            self._named.setdefault(_named(sent[0]), []).append(sent)
        self._seen = len(self)
        if name not in self._named:
            return self.all_refused()
        found, self._named[name] = self._named[name], []
        return found

    def all_refused(self) -> list[_Sent]:
        """Return all that were not refused before without a name."""
        found, self._refused = self[self._refused :], len(self)
        return found


class GuardedClient(Client):
    """
    A client that reports for each message whether the server has taken it.

    A server handles what we say in order, and a PONG answers each PING. So an error between two PONGs concerns a
    message sent between their PINGs. The messages there form a window; the PONG proves all of them that no error names.
    An error that names none of them concerns all.

    An answer comes to an inbox of its own, so that a late one is not taken for another's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window = _Window()  # after the last PING
        self._windows: deque[_Window] = deque()  # one for each of nats-py's `_pongs`
        self._asking: asyncio.Task[None] | None = None
        self._inbox: str | None = None  # known to be heard
        self._wanted_inbox: str | None = None
        self._opening_inbox = asyncio.Lock()
        self._answers: dict[str, asyncio.Future[bytes | errors.Error]] = {}  # by the last token of their inbox
        self._hears: int | None = None  # the subscription to the inbox
        self._tokens = map(str, itertools.count())
        self._pinged = 0  # times since
        self._pinged_since = 0.0
        self._ps = _BoundedParser(self)

    @property
    def started(self) -> bool:
        """Whether `connect()` got far enough for `close()` to work."""
        return self._flush_queue is not None

    def abort(self) -> None:
        """Drop the socket at once, with whatever is unsent."""
        transport = self._transport
        if isinstance(transport, TcpTransport) and transport._io_writer is not None:
            transport._io_writer.transport.abort()

    async def send(self, subject: str, payload: bytes, headers: bytes) -> None:
        """Send a message without waiting for its fate; `headers` is the block of `header_block()`, or nothing."""
        await self._hand_over(subject, payload, headers, "", None, None)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def prove(self, subject: str, payload: bytes, headers: bytes, *, reply: str = "", timeout: float) -> None:
        """Send a message and return when the server has taken it. Raise `errors.Error` if it has not."""
        loop = asyncio.get_running_loop()
        proof: asyncio.Future[errors.Error | None] = loop.create_future()
        timer = loop.call_later(timeout, _resolve, proof, errors.TimeoutError())
        try:
            await self._hand_over(subject, payload, headers, reply, partial(_resolve, proof), timer.when())
            self._prove_soon()
            refusal = await proof
        finally:
            timer.cancel()
            proof.cancel()
        if refusal is not None:
            raise refusal

    async def exchange(self, subject: str, payload: bytes, headers: bytes, *, timeout: float) -> bytes:
        """
        Hand a message over, and return the payload of the answer to it.

        Raises:
            errors.NoRespondersError: there is no subscriber of the subject.
            errors.Error: the server refused it, the connection was lost, or no answer came in time.
        """
        loop, token = asyncio.get_running_loop(), next(self._tokens)
        answer: asyncio.Future[bytes | errors.Error] = loop.create_future()
        timer = loop.call_later(timeout, _resolve, answer, errors.TimeoutError())
        self._answers[token] = answer
        try:
            inbox = self._inbox or await self._open_inbox(timeout)
            await self._hand_over(subject, payload, headers, f"{inbox}.{token}", partial(_refuse, answer), timer.when())
            self._prove_soon()
            said = await answer
        finally:
            timer.cancel()
            del self._answers[token]
        if isinstance(said, errors.Error):
            raise said
        return said

    async def _hand_over(
        self, subject: str, payload: bytes, headers: bytes, reply: str, told: _Told | None, deadline: float | None
    ) -> None:
        """Put a message where the next flush takes it from; where too much waits already, wait for one until then."""
        if not self.is_connected:
            raise errors.ConnectionClosedError
        self._window.append((subject, told))
        size = len(headers) + len(payload)
        verb, sizes = ("HPUB", f"{len(headers)} {size}") if headers else ("PUB", size)
        line = f"{verb} {subject} {reply} {sizes}\r\n"
        frame = b"".join((line.encode(), headers, payload, b"\r\n"))
        if self._pending_data_size + len(frame) <= self._max_pending_size:
            self._pending.append(frame)
            self._pending_data_size += len(frame)
        else:
            await self._squeeze_in(frame, deadline)

    async def _squeeze_in(self, frame: bytes, deadline: float | None) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                with honest_cancellation():
                    await self._send_command(frame)
        except TimeoutError:
            raise errors.TimeoutError from None

    async def _open_inbox(self, timeout: float) -> str:
        """Return where answers go, once the server has agreed that we hear them: nothing is sent before."""
        try:
            async with asyncio.timeout(timeout), self._opening_inbox:
                if self._inbox is None:
                    wanted = self._wanted_inbox = self.new_inbox()
                    with honest_cancellation():
                        self._hears = (await self.subscribe(f"{wanted}.*"))._id
                        await self.rtt(1)
                    if self._wanted_inbox is None:
                        raise errors.Error('no permission to subscribe to "_INBOX.>", where answers go')
                    self._inbox = wanted
                return self._inbox
        except TimeoutError:
            raise errors.TimeoutError from None

    @override
    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid != self._hears:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        answer = self._answers.get(subject.rpartition(b".")[2].decode())
        if answer is not None:
            nobody = (headers or b"").startswith(_NO_RESPONDERS)  # there may be none
            _resolve(answer, errors.NoRespondersError() if nobody else data)

    def _prove_soon(self) -> None:
        """Let one PING prove all that is handed over in this turn of the loop."""
        self._asking = self._asking or asyncio.create_task(self._ask(), name="nats ping")

    async def try_publish(self, subject: str, *, timeout: float) -> None:
        """
        Raise `errors.Error` unless publishing to `subject` is permitted; no message is sent.

        The server checks the right to publish first and refuses the reserved reply next, so the message goes nowhere.
        """
        await self.prove(subject, b"", b"", reply=_RESERVED_REPLY, timeout=timeout)

    async def _ask(self) -> None:
        self._asking = None
        with contextlib.suppress(errors.Error, OSError):
            await self._send_ping()

    @override
    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # nats-py writes a PING ahead of the messages that still wait, so that its PONG would prove nothing about them;
        # and a PONG for a future that was given up would end its read loop.
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if future is not None:
            pong.add_done_callback(lambda _: None if future.done() else future.set_result(True))
        self._pongs.append(pong)
        self._windows.append(self._window)
        self._window = _Window()
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    @override
    async def _process_pong(self) -> None:
        if not self._windows:
            raise errors.ProtocolError  # without a request; a foreign server could keep us busy with them
        _tell(self._windows.popleft(), None)
        await super()._process_pong()

    @override
    async def _process_ping(self) -> None:
        now = time.monotonic()
        self._pinged = 1 if now - self._pinged_since > 1.0 else self._pinged + 1
        self._pinged_since = now if self._pinged == 1 else self._pinged_since
        if self._pinged > _MOST_PINGS:
            raise errors.ProtocolError
        await super()._process_ping()

    @override
    async def _process_err(self, err_msg: str) -> None:
        if _REPLY_NOT_PERMITTED in err_msg:
            return  # the answer that `try_publish()` hopes for; no other reply of ours is reserved
        window = self._windows[0] if self._windows else self._window
        if refused := _NOT_PERMITTED.search(err_msg):
            _tell(window.refused(refused[1]), errors.Error(f"no permission to publish to {refused[1][:_LONGEST]}"))
            return
        if _SUBSCRIPTION_NOT_PERMITTED in err_msg and self._wanted_inbox and self._wanted_inbox.lower() in err_msg:
            self._inbox = self._wanted_inbox = None
            return
        if _SUBSCRIPTION_NOT_PERMITTED not in err_msg:
            _tell(window.all_refused(), errors.Error(f"the server refused: {err_msg.strip(chr(39))[:_LONGEST]}"))
        await super()._process_err(err_msg)

    @override
    async def _close(self, status: int, do_cbs: bool = True) -> None:
        await super()._close(status, do_cbs)
        lost, self._window = [*self._windows, self._window], _Window()
        self._windows.clear()
        reason = self._err if isinstance(self._err, errors.Error) else errors.ConnectionClosedError()
        for window in lost:
            _tell(window, reason)
        for answer in self._answers.values():
            _resolve(answer, reason)

    @override
    def _connect_command(self) -> bytes:
        # nats-py encrypts only if the greeting says so, which an attacker on the way can change.
        if "tls" in self.options and not self._encrypted():
            raise errors.Error("the server offers no TLS, which is required here; no credentials were sent")
        return super()._connect_command()

    def _encrypted(self) -> bool:
        transport = self._transport
        if not isinstance(transport, TcpTransport) or transport._io_writer is None:
            return False
        return transport._io_writer.get_extra_info("cipher") is not None


class _BoundedParser(Parser):
    """A parser with limits; nats-py's own keeps lines without end, and fails on many malformed inputs."""

    @override
    async def parse(self, data: bytes = b"") -> None:
        try:
            await super().parse(data)
        except (errors.Error, OSError):
            raise
        except Exception as error:  # otherwise the read loop would end while the connection looks alive
            raise errors.ProtocolError from error
        if self.state == AWAITING_CONTROL_LINE:
            if len(self.buf) > _LONGEST_LINE:
                raise errors.ProtocolError
        elif self.needed > _LARGEST_MESSAGE:
            raise errors.ProtocolError


@contextlib.contextmanager
def honest_cancellation() -> Iterator[None]:
    """Raise the cancellation that nats-py swallows while it waits for buffer space."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    yield
    if task and task.cancelling() > before:
        raise asyncio.CancelledError


def header_block(headers: Mapping[str, str]) -> bytes:
    """
    Return headers as they stand in a message (NATS ADR-4); nothing for none.

    Raises:
        errors.BadHeaderError: a name is no token.
    """
    if not headers:
        return b""
    lines = [f"{_checked_name(name)}: {_LINE_BREAK.sub(' ', value.strip())}\r\n" for name, value in headers.items()]
    return f"NATS/1.0\r\n{''.join(lines)}\r\n".encode()


@lru_cache(maxsize=256)
def _checked_name(name: str) -> str:
    if not _HEADER_NAME.fullmatch(name):
        raise errors.BadHeaderError(name)
    return name


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    """Set the result, unless there is one."""
    if not future.done():
        future.set_result(result)


def _refuse(answer: asyncio.Future[Any], refusal: errors.Error | None) -> None:
    """Take a refusal for the answer; that the server has the message is none."""
    if refusal is not None:
        _resolve(answer, refusal)


def _named(subject: str) -> str:
    """Return the subject as the server spells it in a refusal."""
    escaped = subject.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.lower()


def _tell(window: list[_Sent], refusal: errors.Error | None) -> None:
    for _, told in window:
        if told is not None:
            told(refusal)
