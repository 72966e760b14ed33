"""A subscriber outside: `python -m tests.chaos.receiver PORT JOURNAL SECONDS`; the path names the subscription."""

from __future__ import annotations

import asyncio
import os
import sys
from urllib.parse import unquote

from aiohttp import web

from .journals import Pen, Sighting, digest, now


def application(journal: str, seconds: float) -> web.Application:
    """Return what accepts every POST after `seconds`, and writes down each."""
    pen = Pen(journal)

    async def receive(request: web.Request) -> web.Response:
        body = await request.read()
        attempt = int(request.headers["runner-attempt"])
        about = (unquote(request.headers["ce-id"]), request.match_info["subscription"], attempt)
        pen.write(Sighting(*about, "begun", now(), os.getpid(), digest(body)))
        await asyncio.sleep(seconds)
        pen.write(Sighting(*about, "accepted", now(), os.getpid(), digest(body)), sync=True)
        return web.Response(status=204)

    application = web.Application(client_max_size=2**21)
    application.router.add_post("/{subscription}", receive)
    return application


if __name__ == "__main__":
    web.run_app(
        application(sys.argv[2], float(sys.argv[3])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        print=lambda text: print(text, flush=True),
    )
