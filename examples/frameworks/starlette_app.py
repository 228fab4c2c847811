"""Starlette: `uvicorn starlette_app:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pgratchet import Gate, Migrator, migrated

DSN = os.environ["DATABASE_URL"]
migrator = Migrator(DSN, "migrations/versions")


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, Any]]:
    """Keep a pool; the schema is ready."""
    async with asyncpg.create_pool(DSN) as pool:
        yield {"pool": pool}


async def tenants(request: Request) -> JSONResponse:
    """Return the number of tenants."""
    return JSONResponse(await request.state.pool.fetchval("SELECT count(*) FROM tenants"))


app = Starlette(
    routes=[Route("/tenants", tenants)],
    middleware=[Middleware(Gate, migrator=migrator)],
    lifespan=migrated(migrator, inner=lifespan),
)
