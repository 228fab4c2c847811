"""The application that the servers of `processes.py` serve; variables configure it."""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import asyncpg
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from pgratchet import Migrator, gate, migrated

DSN = os.environ["SERVED_DSN"]
CHOICES = json.loads(os.environ["SERVED_CHOICES"])

ENDS: dict[str, Callable[[BaseException], object]] = {
    "signal": lambda _: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda _: sys.exit(3),
}
"""An application's possible reactions to a failure of the work that runs beside it."""


async def rows(_: Request) -> JSONResponse:
    """Answer with rows that only the migrations have written, and with the process id."""
    connection = await asyncpg.connect(DSN, statement_cache_size=0)
    try:
        return JSONResponse({"rows": await connection.fetchval("SELECT count(*) FROM ledger"), "pid": os.getpid()})
    finally:
        await connection.close()


async def alive(_: Request) -> PlainTextResponse:
    return PlainTextResponse("alive")


migrator = Migrator(DSN, os.environ["SERVED_FOLDER"], lock_timeout=0)
hook = migrated(migrator, on_failure=ENDS.get(CHOICES.get("on_failure", "")), **CHOICES.get("hook", {}))
routes = [Route("/", rows), Route("/livez", alive)]


async def raw(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Use no framework: a framework would answer for a lifespan that raises."""
    if scope["type"] != "lifespan":
        await Starlette(routes=routes)(scope, receive, send)
        return
    await receive()
    async with hook:
        if CHOICES.get("raises"):
            raise ConnectionError("no pool")
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


ungated = raw
gated = gate(raw, migrator)
app = gate(Starlette(routes=routes, lifespan=hook), migrator)
