"""aiohttp: `python aiohttp_app.py`."""

import os
from collections.abc import AsyncIterator

import asyncpg
from aiohttp import web

from pgratchet import Migrator, migrated

DSN = os.environ["DATABASE_URL"]
POOL = web.AppKey("POOL", asyncpg.Pool)


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    """Keep a pool; the schema is ready."""
    async with asyncpg.create_pool(DSN) as app[POOL]:
        yield


async def tenants(request: web.Request) -> web.Response:
    """Return the number of tenants."""
    return web.json_response(await request.app[POOL].fetchval("SELECT count(*) FROM tenants"))


app = web.Application()
app.cleanup_ctx.append(migrated(Migrator(DSN, "migrations/versions")))
app.cleanup_ctx.append(lifespan)
app.router.add_get("/tenants", tenants)

if __name__ == "__main__":
    web.run_app(app)
