"""ASGI without a framework, or around one: `uvicorn asgi_app:app`."""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import asyncpg

from pgratchet import Migrator, gate, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def lifespan(state: dict[str, Any], receive: Receive, send: Send) -> None:
    """Keep a pool once the schema is ready."""
    await receive()
    async with migrated(migrator), asyncpg.create_pool(DSN) as state["pool"]:
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def serve(scope: Message, receive: Receive, send: Send) -> None:
    """Answer every request with the number of tenants."""
    if scope["type"] == "lifespan":
        await lifespan(scope["state"], receive, send)
        return
    count: int = await scope["state"]["pool"].fetchval("SELECT count(*) FROM tenants")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"%d" % count})


app = gate(serve, migrator)
