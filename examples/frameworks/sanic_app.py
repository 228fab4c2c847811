"""Sanic: `sanic sanic_app:app`, or `uvicorn sanic_app:asgi`."""

import os
from typing import Any

import asyncpg
from sanic import HTTPResponse, Request, Sanic, json

from pgratchet import Migrator, gate

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")
app = Sanic("tenants")


@app.main_process_start
@app.before_server_start
async def migrate(_: Sanic[Any, Any]) -> None:
    """Migrate in the main process, which has no time limit; its workers find the schema ready."""
    await migrator.up()


@app.before_server_start
async def start(app: Sanic[Any, Any]) -> None:
    """Open a pool; the schema is ready."""
    app.ctx.pool = await asyncpg.create_pool(DSN)


@app.after_server_stop
async def stop(app: Sanic[Any, Any]) -> None:
    """Close the pool."""
    await app.ctx.pool.close()


@app.get("/tenants")
async def tenants(request: Request) -> HTTPResponse:
    """Return the number of tenants."""
    return json(await request.app.ctx.pool.fetchval("SELECT count(*) FROM tenants"))


asgi = gate(app, migrator)
