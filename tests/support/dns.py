"""A DNS server whose answers change, and a look-up through it in place of the system's."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from .server import HOST

Addresses = Callable[[int], Sequence[str]]


class Rebinding(asyncio.DatagramProtocol):
    """Answers the n-th question for the IPv4 addresses of a name with what `addresses(n)` says, never to be kept."""

    def __init__(self, addresses: Addresses) -> None:
        self.asked = 0
        self._addresses = addresses
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(HOST, 0))

    def stop(self) -> None:
        assert self._transport is not None
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        assert self._transport is not None
        name_end = data.index(b"\0", 12) + 1
        kind = struct.unpack_from("!H", data, name_end)[0]
        question, answers = data[12 : name_end + 4], b""
        found = self._addresses(self.asked) if kind == 1 else ()
        self.asked += kind == 1
        for each in found:
            answers += b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 0, 4) + ipaddress.IPv4Address(each).packed
        self._transport.sendto(data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0) + question + answers, addr)

    async def getaddrinfo(self, host: bytes | str, port: int, **_options: Any) -> list[Any]:
        """Ask the server, as the event loop's `getaddrinfo` asks the system's."""
        assert self._transport is not None
        name = host.decode() if isinstance(host, bytes) else host
        try:
            return [_info(str(ipaddress.ip_address(name)), port)]
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(self._transport.get_extra_info("sockname"))
            head = struct.pack("!HHHHHH", random.getrandbits(16), 0x0100, 1, 0, 0, 0)
            await loop.sock_sendall(client, head + labels + b"\0" + struct.pack("!HH", 1, 1))
            answer = await loop.sock_recv(client, 4096)
        count = struct.unpack_from("!H", answer, 6)[0]
        packed = [answer[len(answer) - 16 * (count - n) + 12 :][:4] for n in range(count)]
        return [_info(str(ipaddress.IPv4Address(each)), port) for each in packed]


def _info(address: str, port: int) -> Any:
    return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)
