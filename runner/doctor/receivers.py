"""The hosts of webhooks: whether their names resolve to addresses that are allowed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from ..config import Config
from ..sinks.http.address import Address
from ..sinks.http.guard import ANYWHERE, Guard
from ..sinks.http.options import guard_of
from ..sinks.webhook import WebhookOptions
from .bounded import in_thread
from .verdict import Finding, fault, fine

__all__ = ["receivers"]


async def receivers(config: Config, budget: float) -> Sequence[Finding]:
    """Return which hosts of webhooks cannot be posted to. Nothing is sent to them."""
    wanted: dict[tuple[str, int, Guard], list[str]] = {}
    for name, plugin in config.sinks.items():
        options = plugin.options
        if isinstance(options, WebhookOptions):
            guard = ANYWHERE if options.allow is None else guard_of(options.allow)
            urls = [options.url]
            if options.auth is not None and options.auth.oauth2 is not None:
                urls.append(options.auth.oauth2.token_url)
            for address in map(Address.parse, urls):
                wanted.setdefault((address.host, address.port, guard), []).append(name)
    if not wanted:
        return []
    found = await asyncio.gather(*[_look(key, names, budget) for key, names in wanted.items()])
    bad = [finding for finding in found if finding is not None]
    return bad or [fine("webhooks", f"{len(wanted)} host{'s' if len(wanted) > 1 else ''} resolved")]


async def _look(key: tuple[str, int, Guard], names: Sequence[str], budget: float) -> Finding | None:
    host, port, guard = key
    subject = ", ".join(dict.fromkeys(names))
    cure = f"correct the URL of sink {subject}, or the name server (/etc/resolv.conf)"
    try:
        async with asyncio.timeout(budget):
            found = await in_thread(_resolve, host, port)
    except TimeoutError:
        return fault(
            "webhooks", "unresolved", f"{host}: no answer from the name server within {budget:g} s", cure, subject
        )
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        return fault("webhooks", "unresolved", f"{host} cannot be resolved: {reason}", cure, subject)
    refusal = guard.addresses_fault(host, found)
    if refusal is not None:
        return fault("webhooks", "not_allowed", f"{host}: {refusal}", f"name it in allow of sink {subject}", subject)
    return None


def _resolve(host: str, port: int) -> list[str]:
    return list(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
